"""The stack of docker-compose.yml on this machine without containers: the same commands and configuration.

    python -m deploy.native [--store STORE] [--model REF ...]

starts the server, and a Prometheus that monitors it, on loopback. Ctrl-C, SIGTERM and SIGHUP end both after the
server's drain; a second signal cuts the drain short. SIGKILL leaves Prometheus's folder behind and, on Linux, nothing
else. Debian's `prometheus` package is required. Only settings that refer to containers are rewritten: hosts, ports,
mount folders.
"""

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import yaml

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "docker-compose.yml"
CONFIGURATION = Path(__file__).parent / "prometheus" / "prometheus.yml"

_LISTENING = re.compile(r'msg="Listening on".* address=(\S+)')
_START_S = 60
_STOP_S = 30
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class PrometheusError(Exception):
    """Prometheus could not be started or did not answer a query."""


class Prometheus:
    """Runs this machine's Prometheus with the committed configuration for the duration of a `with` block.

    `server` is the HOST:PORT where the server listens; `change` may edit the configuration before it is used.
    """

    def __init__(self, server: str, *, change: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._server = server
        self._change = change
        self._listening = threading.Event()
        self._last_lines: list[str] = []
        self.url = ""

    def __enter__(self) -> Self:
        binary = shutil.which("prometheus")
        if binary is None:
            raise PrometheusError("prometheus is not installed: apt-get install prometheus")
        self._folder = Path(tempfile.mkdtemp(prefix="nash-prometheus-"))
        configuration = native_configuration(self._server)
        if self._change is not None:
            self._change(configuration)
        path = self._folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(configuration), encoding="utf-8")
        own = {
            "--config.file": path,
            "--storage.tsdb.path": self._folder / "data",
            "--web.listen-address": "127.0.0.1:0",
        }
        self._process = subprocess.Popen(
            _bound([binary, *_with_flags(_compose_command("prometheus"), own)]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        try:
            threading.Thread(target=self._read, daemon=True).start()
            if not self._listening.wait(_START_S) or not self.url:
                raise PrometheusError("prometheus did not start: " + " / ".join(self._last_lines[-3:]))
            self._wait_until_ready()
        except BaseException:  # including Ctrl-C: nothing else knows about the process yet
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The current instant vector of an expression. `metric` holds the labels, `value` the time and a string.

        Raises:
            PrometheusError: the expression is not valid.
        """
        result = self._get("query", query=expression)["result"]
        return result if isinstance(result, list) else [result]

    def metric_names(self) -> set[str]:
        """All names of its series, including recorded ones."""
        return set(self._get("label/__name__/values"))

    def rules(self) -> list[dict[str, Any]]:
        """The recording and alerting rules with their current state, including `health` and `lastError`."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def wait_for(self, expression: str, *, timeout_s: float = 60.0) -> list[dict[str, Any]]:
        """Wait until the vector of an expression is not empty, and return it.

        Raises:
            PrometheusError: it is still empty after `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        while not (found := self.query(expression)):
            if time.monotonic() > deadline_s:
                raise PrometheusError(f"{expression} has no series after {timeout_s:g} s")
            time.sleep(0.2)
        return found

    def _wait_until_ready(self) -> None:
        """Wait until it answers queries: it listens before it can."""
        deadline_s = time.monotonic() + _START_S
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/-/ready", timeout=_STOP_S).close()
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.1)
            else:
                return

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=_STOP_S) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise PrometheusError(f"{parameters}: {error.read().decode()}") from error

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._last_lines = [*self._last_lines[-20:], line.strip()]
            if (found := _LISTENING.search(line)) is not None:
                self.url = f"http://{found[1]}"
                self._listening.set()
        self._listening.set()  # it has ended


def native_configuration(server: str) -> dict[str, Any]:
    """The committed prometheus.yml with this machine's paths and the server's HOST:PORT."""
    configuration: dict[str, Any] = yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))
    mounted = Path(_flags(_compose_command("prometheus"))["--config.file"]).parent
    configuration["rule_files"] = [
        str(CONFIGURATION.parent / Path(name).relative_to(mounted)) if Path(name).is_absolute()
        else str(CONFIGURATION.parent / name)
        for name in configuration["rule_files"]
    ]  # fmt: skip
    for job in configuration["scrape_configs"]:
        for group in job["static_configs"]:
            group["targets"] = [server if job["job_name"] == "nash" else target for target in group["targets"]]
    return configuration


def _compose_command(service: str) -> list[str]:
    command = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"][service]["command"]
    assert isinstance(command, list)
    return command


def _flags(command: Sequence[str]) -> dict[str, str]:
    return dict(argument.split("=", 1) for argument in command if "=" in argument)


def _with_flags(command: Sequence[str], own: dict[str, Any]) -> list[str]:
    """The command with `own` flags added, replacing flags of the same name."""
    kept = [argument for argument in command if argument.split("=", 1)[0] not in own]
    return kept + [f"{flag}={value}" for flag, value in own.items()]


def _bound(command: list[str]) -> list[str]:
    """The command; on Linux, wrapped so that the kernel sends it SIGTERM when the thread that started it ends."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return command if setpriv is None else [setpriv, "--pdeathsig", "TERM", "--", *command]


def _pass_on(server: "subprocess.Popen[bytes]") -> None:
    """Pass signals that would end this process on to the server. Everything else ends when the server does."""

    def ask(number: int, frame: FrameType | None) -> None:
        server.send_signal(signal.SIGTERM)

    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup sets SIG_IGN
            signal.signal(number, ask)


def main() -> int:
    """Run the server and Prometheus until the server ends or a signal ends it; return the server's exit status."""
    parser = argparse.ArgumentParser(description="The server and Prometheus on this machine, without containers.")
    parser.add_argument("--store", default="store", help="the model store's folder")
    parser.add_argument("--model", action="append", help="a variant to serve; default: g2p@dense and g2p@pruned")
    parser.add_argument("--port", type=int, default=8000, help="port of the server")
    options = parser.parse_args()
    command = [sys.executable, "-m", "server", "--store", options.store, "--port", str(options.port)]
    for model in options.model or ("g2p@dense", "g2p@pruned"):
        command += ["--model", model]
    # In its own process group: otherwise a terminal's Ctrl-C would also reach it directly, and a second signal cuts its
    # drain short.
    server = subprocess.Popen(_bound(command), process_group=0)
    _pass_on(server)
    try:
        with Prometheus(f"127.0.0.1:{options.port}") as prometheus:
            print(f"Prometheus at {prometheus.url}", flush=True)
            status = server.wait()
    except PrometheusError as error:
        print(f"error: {error}", file=sys.stderr)
        server.terminate()
        server.wait()
        return 1
    return status if status >= 0 else 128 - status  # a shell's exit status for a process ended by a signal


if __name__ == "__main__":
    sys.exit(main())
