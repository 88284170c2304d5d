"""The Dockerfile, as far as it can be held to without a container engine."""

import importlib.metadata
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.container_files import (
    ROOT,
    entry_point,
    health_check,
    image_environment,
    instructions,
    is_ignored,
    stages,
)
from tests.running_server import RunningServer, publish_tiny_models

FINAL = ("loadtest", "server")
LOCUSTFILE = ["--locustfile", "loadtest/locustfile.py"]
COMPILERS = re.compile(r"\b(gcc|g\+\+|build-essential|make|apt-get|apk)\b")


@pytest.fixture(scope="module")
def not_for_long(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that takes long to start a worker again."""
    store = publish_tiny_models(tmp_path_factory.mktemp("health"))
    with RunningServer("--store", str(store), "--model", "tiny@pruned,threads=1", "--restart-s", "30") as running:
        yield running


def sources() -> list[str]:
    """What COPY and bind mounts take from the builder's folder."""
    found = []
    for word, rest in (each for stage in stages().values() for each in stage):
        if word == "COPY" and not rest.startswith("--from="):
            found += rest.split()[:-1]
        found += re.findall(r"--mount=type=bind,source=([^,\s]+)", rest)
    return found


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_what_is_copied_is_there_and_reaches_the_builder() -> None:
    found = sources()
    assert {"server", "nash", "model_store", "loadtest", "constraints.txt"} <= set(found)
    for source in found:
        assert (ROOT / source).exists(), source
        assert not is_ignored(source), source
        assert not is_ignored(f"{source}/inside.py"), source


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".env",
        "store/blobs/sha256/ab/abcd",
        "runs/1",
        ".venv/bin/python",
        "tests/running_server.py",
        "examples/g2p/model/model.safetensors",
        "examples/g2p/data/train.jsonl",
        "nash.egg-info/PKG-INFO",
        "nash/__pycache__/prune.cpython-311.pyc",
        "server/api/__pycache__/app.cpython-311.pyc",
        "nash-api-keys",
    ],
)
def test_nothing_else_reaches_the_builder(path: str) -> None:
    assert is_ignored(path)


@pytest.mark.parametrize("stage", FINAL)
def test_images_run_as_a_numbered_user_and_hold_no_compiler(stage: str) -> None:
    found = instructions(stage)
    assert [rest for word, rest in found if word == "USER"] == ["10001:10001"]
    assert entry_point(stage)[:3] == (["python", "-m", "server"] if stage == "server" else ["locust", *LOCUSTFILE])
    assert found[0] == ("FROM", "python:3.11-slim-bookworm")
    assert not [rest for word, rest in found if word == "RUN" and COMPILERS.search(rest)]
    environment = image_environment(stage)
    assert (environment["HOME"], environment["TMPDIR"], environment["PYTHONUNBUFFERED"]) == ("/tmp", "/tmp", "1")


def test_the_server_is_what_is_built_by_default() -> None:
    assert list(stages())[-1] == "server"


def test_dependencies_come_before_the_sources() -> None:
    found = stages()["server-build"]
    [dependencies] = [i for i, (word, rest) in enumerate(found) if word == "RUN" and "-r /tmp/requirements.txt" in rest]
    assert dependencies < min(i for i, (word, _) in enumerate(found) if word == "COPY")
    assert ("ARG", 'TORCH_INDEX_URL=""') in found


@pytest.mark.parametrize(
    ("stage", "expected"), [("server-build", "torch"), ("server-build", "obstore"), ("loadtest-build", "locust")]
)
def test_requirements_are_read_from_the_project_and_pinned(stage: str, expected: str, tmp_path: Path) -> None:
    [rest] = [rest for word, rest in stages()[stage] if word == "RUN" and "tomllib" in rest]
    [program] = re.findall(r"python -c ('.*?') > /tmp/requirements\.txt", rest)
    command = [sys.executable, "-c", shlex.split(program)[0]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = {canonicalize_name(Requirement(line).name) for line in done.stdout.splitlines()}
    assert expected in names
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert names <= {canonicalize_name(line.partition("==")[0]) for line in pinned if "==" in line}


def checked(stage: str, port: int | str) -> int:
    """How an image's health check ends beside a server on that port, under a proxy that is not to be asked."""
    _, *arguments = health_check(stage)
    arguments[1] = arguments[1].replace("127.0.0.1', 8089", f"127.0.0.1', {port}")
    environment = {**os.environ, "NASH_SERVER_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=False).returncode


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def test_the_health_check_tells_ready_from_not_ready(not_for_long: RunningServer) -> None:
    port = not_for_long.url.rpartition(":")[2]
    assert checked("server", port) == 0
    [worker] = not_for_long.worker_pids()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: checked("server", port) == 1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.parametrize("stage", FINAL)
def test_the_health_check_fails_where_nobody_listens(stage: str) -> None:
    assert checked(stage, free_port()) == 1


def test_locusts_page_comes_up(tmp_path: Path) -> None:
    """The image's command in its environment, on another port."""
    environment = image_environment("loadtest")
    assert (ROOT / environment["NASH_LOADTEST_WORKLOAD"]).is_file()
    port = free_port()
    locust, *arguments = entry_point("loadtest")
    process = subprocess.Popen(
        [Path(sys.executable).parent / locust, *arguments, f"--web-port={port}", "--web-host=127.0.0.1"],
        cwd=ROOT,
        env={**os.environ, **environment, "PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: process.poll() is not None or checked("loadtest", port) == 0)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(30)


def with_what_it_requires(distribution: str, found: set[str]) -> set[str]:
    """A distribution's name and those of all that it stands on, added to `found`."""
    if (name := canonicalize_name(distribution)) not in found:
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                with_what_it_requires(requirement.name, found)
    return found


def test_the_locustfile_needs_no_more_than_its_image_has() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    there = {"nash"}
    for line in project["optional-dependencies"]["loadtest"]:
        with_what_it_requires(Requirement(line).name, there)
    modules = importlib.metadata.packages_distributions()
    absent = sorted(m for m, owners in modules.items() if not {canonicalize_name(owner) for owner in owners} & there)
    assert {"torch", "typer", "httpx"} <= set(absent)
    program = f"import sys; sys.modules.update(dict.fromkeys({absent})); import locust, loadtest.locustfile"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
