"""A real `python -m server` over tiny models, for tests that speak HTTP to it."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from model_store.store import Store
from tests.tiny_models import build_tiny_t5

_START_S = 300  # importing torch takes minutes where its files must come from a slow disk


def publish_tiny_models(folder: Path) -> Path:
    """A store with `tiny@dense`, and `tiny@pruned` with fewer decoder layers and other weights."""
    store = Store(folder / "store")
    store.publish("tiny", build_tiny_t5(folder / "a", seed=0), alias="dense")
    store.publish("tiny", build_tiny_t5(folder / "b", seed=3, decoder_layers=1), alias="pruned")
    return folder / "store"


class RunningServer:
    """Started by `with`, stopped at its end; `url` and `pid` are known in between."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._arguments = arguments
        self._environment = environment or {}
        self._lines: queue.Queue[str] = queue.Queue()
        self.url = ""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server", "--port", "0", *self._arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **self._environment},
        )
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.log = self._until_it_serves()
            self.announcement = self.log[-1]
        except BaseException:
            self.process.kill()
            raise
        self.url = self.announcement.rsplit(" ", 1)[1].strip(' \n"}').rstrip("/")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)

    @property
    def pid(self) -> int:
        return self.process.pid

    def worker_pids(self) -> list[int]:
        """The processes that the server started and that live."""
        return [pid for pid in _pids() if _parent(pid) == self.pid]

    def next_line(self, text: str, timeout_s: float = 60.0) -> str:
        """Read on until a line of its output has this text, and return that line."""
        deadline_s = time.monotonic() + timeout_s
        while text not in (line := self._lines.get(timeout=max(0.0, deadline_s - time.monotonic()))):
            assert line, f"it ended without {text!r}"
        return line

    def _until_it_serves(self) -> list[str]:
        lines = [self._lines.get(timeout=_START_S)]
        while not lines[-1].removeprefix('{"message": "').startswith("serving "):
            assert lines[-1], f"it ended: {''.join(lines)}"
            lines.append(self._lines.get(timeout=_START_S))
        return lines

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _parent(pid: int) -> int | None:
    try:
        # The name, in parentheses, may hold anything; state and parent follow its last parenthesis.
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(parent)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not collected yet does not."""
    return _parent(pid) is not None
