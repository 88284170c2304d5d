"""The worker side: one process in a peer's environment that reads requests on standard input, one line of JSON each.

    python -m benchmarks.peers.worker MODULE

    {"do": "prepare", "model": FOLDER, "made": FOLDER, "dtype": NAME}          makes the files that `load` needs
    {"do": "load", "model": ..., "made": ..., "dtype": ..., "threads": N}      may come once for each number of threads
    {"do": "run", "threads": N, "sources": [[...], ...], "new_tokens": N}      one timed generation
    {"do": "quit"}

It answers each with one line, {"ok": {...}} or {"error": "one line"}. Output of the libraries goes to standard error.
"""

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from benchmarks.peers.adapters import Generator
from benchmarks.peers.timing import timed


class Worker:
    """The loaded generators, by number of threads."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter
        self._loaded: dict[int, Generator] = {}

    def prepare(self, model: str, made: str, dtype: str) -> dict[str, Any]:
        """Make the peer's files in a folder beside `made`, and rename it to `made` when it is complete."""
        target = Path(made)
        partial = target.with_name(f"{target.name}.partial")
        for left in (partial, target):
            shutil.rmtree(left, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        self._adapter.prepare(Path(model), partial, dtype)
        partial.mkdir(exist_ok=True)  # some peers write no files
        partial.rename(target)
        return {}

    def load(self, model: str, made: str, dtype: str, threads: int) -> dict[str, Any]:
        """Load for a number of threads, and return the versions."""
        self._loaded[threads] = self._adapter.load(Path(model), Path(made), dtype, threads)
        return {"versions": _versions(self._adapter.PACKAGES)}

    def run(self, threads: int, sources: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """One timed generation, and its tokens."""
        generator = self._loaded[threads]
        timing, tokens = timed(lambda count: generator.generate(sources, count), new_tokens)
        return {**asdict(timing), "tokens": tokens}


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # the package is not from a registry
            found[package] = "unknown"
    return found


def serve(worker: Worker, requests: TextIO, answers: TextIO) -> None:
    """Answer requests until told to quit or until the input ends."""
    commands: Mapping[str, Callable[..., dict[str, Any]]] = {
        "prepare": worker.prepare,
        "load": worker.load,
        "run": worker.run,
    }
    for line in requests:
        request = json.loads(line)
        what = request.pop("do")
        if what == "quit":
            return
        answer: dict[str, Any]
        try:
            answer = {"ok": commands[what](**request)}
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is a result
            answer = {"error": one_line(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def one_line(error: BaseException) -> str:
    """The error's type and first line; some libraries add many more."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def main() -> None:
    """Serve; standard output is only for answers, so what libraries print is redirected."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(Worker(importlib.import_module(sys.argv[1])), sys.stdin, answers)


if __name__ == "__main__":
    main()
