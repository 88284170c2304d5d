"""`python -m deploy.native` as a process: however it is ended, what it started ends with it."""

import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy import native
from tests.running_server import publish_tiny_models

STARTED_S = 300  # importing torch takes minutes where its files must come from a slow disk
ENDED_S = 30


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("prometheus") is None:
        reason = "Debian's prometheus is not installed"
        if os.environ.get("NASH_REQUIRE_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return publish_tiny_models(tmp_path_factory.mktemp("native"))


class Stack:
    """A running `python -m deploy.native` whose temporary files lie in `folder`."""

    def __init__(self, store: Path, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "deploy.native", "--store", str(store), "--port", str(port)]
        self.process = subprocess.Popen(
            [*command, "--model", "tiny@dense"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=native.ROOT,
            env={**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
            # Who runs the tests under nohup ignores SIGHUP, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self.seen = ""
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for_line(self, pattern: str) -> None:
        while not re.search(pattern, self.seen):
            self.seen += self._lines.get(timeout=STARTED_S)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)


@contextmanager
def running_stack(store: Path, folder: Path) -> Iterator[Stack]:
    stack = Stack(store, folder)
    try:
        stack.wait_for_line("Prometheus at ")
        stack.wait_for_line("serving tiny@dense")
        yield stack
    finally:
        stack.process.kill()
        stack.process.wait()


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]  # fmt: skip
    return children + [below for child in children for below in descendants(child)]


def running(pids: list[int]) -> list[int]:
    """Those that have not ended; one that ended and was not collected yet has."""

    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return "gone"

    return [pid for pid in pids if state(pid) not in ("gone", "Z")]


def eventually(condition: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + ENDED_S
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_all_of_it(number: signal.Signals, store: Path, tmp_path: Path) -> None:
    with running_stack(store, tmp_path) as stack:
        started = descendants(stack.process.pid)
        assert len(started) >= 3, "the server, its worker, Prometheus"
        assert len(list(tmp_path.glob("nash-prometheus-*"))) == 1
        stack.process.send_signal(number)
        assert stack.process.wait(ENDED_S) == 0
        assert running(started) == []
        assert list(tmp_path.glob("nash-prometheus-*")) == []


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="without setpriv nothing binds a child to its parent")
def test_the_kernel_ends_what_a_kill_leaves(store: Path, tmp_path: Path) -> None:
    with running_stack(store, tmp_path) as stack:
        started = descendants(stack.process.pid)
        assert len(started) >= 3
        stack.process.kill()
        assert eventually(lambda: running(started) == []), running(started)


def test_a_missing_prometheus_ends_the_server_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(command: list[str], **options: int) -> "subprocess.Popen[bytes]":
        started.append(popen(["sleep", "60"], **options))  # type: ignore[call-overload]
        return started[-1]

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["native", "--store", str(tmp_path)])
    try:
        assert native.main() == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert [process.returncode for process in started] == [-signal.SIGTERM]
    assert "prometheus is not installed: apt-get install prometheus" in capfd.readouterr().err
