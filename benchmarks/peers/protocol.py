"""The client side of a worker: a process that gets requests, one line of JSON each."""

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parent.parent.parent


class PeerError(Exception):
    """A peer could not do what it was asked; the message is one line."""


class Process:
    """A running worker. What it prints goes to `log`."""

    def __init__(
        self, module: str, *, log: Path, python: Path | None = None, variables: Mapping[str, str] | None = None
    ) -> None:
        """Start it with an environment's interpreter, or with ours if `python` is None."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("ab") as printed:
            self._process = subprocess.Popen(
                [str(python or sys.executable), "-m", "benchmarks.peers.worker", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                cwd=ROOT,
                env=variables,
                text=True,
                encoding="utf-8",
            )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def ask(self, what: str, *, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            PeerError: the worker failed, died, or took longer than `timeout_s`; in the last case it is ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            raise PeerError(f"no answer to {what!r} in {timeout_s:.0f} s") from None
        except (BrokenPipeError, ValueError):  # a closed pipe
            line = None
        if line is None:
            raise PeerError(f"its process ended with {self._process.wait()}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        found: dict[str, Any] = answer["ok"]
        return found

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"

    def close(self) -> None:
        """Ask the worker to quit, and kill it if it does not."""
        if self._process.poll() is None:
            try:
                assert self._process.stdin is not None
                self._process.stdin.write('{"do": "quit"}\n')
                self._process.stdin.close()
                self._process.wait(timeout=2)
            except (BrokenPipeError, ValueError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
