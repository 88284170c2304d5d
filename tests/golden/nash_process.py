"""`nash` as a process of its own: commands that end, and the server that it becomes."""

import importlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest.mock import patch

import httpx

ROOT = Path(__file__).parent.parent.parent

_LONGEST_S = 900  # importing torch nine times takes minutes on a machine that has other work
_AT_ONCE = 2  # most of what a command does, it does on one core
_LARGE = ("torch", "transformers.trainer_seq2seq", "transformers.models.auto.modeling_auto")
_STARTING = threading.Lock()


def entry_point() -> tuple[str, str]:
    """Module and function of the `nash` script."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["scripts"]["nash"].split(":")
    return module, function


def environment() -> dict[str, str]:
    """That of this process, with this checkout's packages first and without settings of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NASH_STORE", "NASH_SERVER_"))}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "300"}
    return kept | plain | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command_line(*arguments: object) -> list[str]:
    """What the `nash` script does, for whatever its entry point is now."""
    module, function = entry_point()
    program = f"import sys; sys.argv[0] = 'nash'; from {module} import {function} as main; sys.exit(main())"
    return [sys.executable, "-c", program, *map(str, arguments)]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command left."""

    code: int
    out: str
    err: str

    def document(self) -> Any:
        """The one JSON document of a command that succeeded."""
        assert self.code == 0, self.err
        assert self.out.isascii()
        return json.loads(self.out)


def nash(*arguments: object, folder: Path) -> Outcome:
    """Run one command in a folder, as a shell would."""
    done = subprocess.run(
        command_line(*arguments),
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LONGEST_S,
        check=False,
    )
    return Outcome(code=done.returncode, out=done.stdout, err=done.stderr)


def nash_each(commands: Sequence[Sequence[object]], folder: Path) -> list[Outcome]:
    """Run several commands that do not touch each other's files, as many at once as there are cores."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda command: nash(*command, folder=folder), commands))


def nash_each_forked(commands: Sequence[Sequence[object]], folder: Path) -> list[Outcome]:
    """The same for commands that train, evaluate or measure.

    Each has a process of its own, which is forked from one that has imported the large libraries of others already:
    the work takes a second, and these imports seven.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda command: _forked(list(map(str, command)), folder), commands))


def _forked(arguments: list[str], folder: Path) -> Outcome:
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(list(_LARGE))
    with tempfile.TemporaryDirectory() as name:
        out, err = Path(name) / "out", Path(name) / "err"
        process = forks.Process(target=_become, args=(arguments, folder, out, err))
        with _STARTING, patch.dict(os.environ, environment()):  # the first one starts what all are forked from
            process.start()
        process.join(_LONGEST_S)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"nash {' '.join(arguments)} does not end")
        return Outcome(code=process.exitcode, out=out.read_text("utf-8"), err=err.read_text("utf-8"))


def _become(arguments: list[str], folder: Path, out: Path, err: Path) -> None:
    """What the forked process does: the same as `command_line`."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment())
    for number, path in ((0, Path(os.devnull)), (1, out), (2, err)):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
        os.dup2(os.open(path, flags, 0o600), number)
    if "torch" in sys.modules:  # imported before this environment, maybe for another test's processes
        sys.modules["torch"].set_num_threads(1)
    sys.argv = ["nash", *arguments]
    sys.path.insert(0, str(ROOT))
    module, function = entry_point()
    sys.exit(getattr(importlib.import_module(module), function)())


class NashServe:
    """`nash serve`: started by `with`, and stopped by SIGTERM at its end, to which it must answer with 0."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.url = f"http://127.0.0.1:{_free_port()}"
        self._folder = folder
        self._arguments = arguments
        self._log = folder / "server.log"

    def __enter__(self) -> Self:
        port = self.url.rsplit(":", 1)[1]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command_line("serve", "--port", port, *self._arguments),
                cwd=self._folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(30)
        assert code == 0, f"SIGTERM ended it with {code}: {self._said()}"

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + _LONGEST_S
        while time.monotonic() < deadline_s:
            assert self._process.poll() is None, f"it ended: {self._said()}"
            try:
                if httpx.get(f"{self.url}/health/ready", timeout=10).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # it does not listen yet
            time.sleep(0.05)
        raise AssertionError(f"it does not come up: {self._said()}")

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
