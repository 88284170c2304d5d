"""The folder of one run: what is done stays done, so an interrupted run goes on where it stopped."""

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, TextIO

from nash import ranks
from nash.errors import RequestError
from nash.precision import PrecisionChoice
from nash.recipes.recipe import BATCH_KEYS, LENGTH_KEYS, LOOK_KEYS, TRACELESS_KEYS, dotted

PRECISION = "precision.json"  # in a run's folder: what each phase computed in
CHECKPOINTS = "checkpoints"

_LOCK = ".lock"


class RunFolder:
    """`--out`: holds the run's settings, the digests of its inputs, its phases' checkpoints and results.

    One run at a time has a folder, for as long as the `with` block lasts; it belongs to the run's settings and inputs
    from `bind` on. Of several processes, the first has the lock and writes; the others read what it has written.

    Raises:
        RequestError: it is no folder, it belongs to a run with other settings, or its inputs have changed since.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], inputs: dict[str, str], *, extensible: bool = False
    ) -> None:
        """`extensible`: training may be made longer than it was; `extended` then holds the keys that say so."""
        self.path = path
        self.extended: list[str] = []
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise _no_folder(path) from None
        self._bound = {"settings": settings, "inputs": inputs}
        self._lock = _lock(path / _LOCK) if ranks.first() else None
        try:
            self.extended = _check_bound(path, "settings", settings, extensible=extensible)
            _check_bound(path, "inputs", inputs)
        except RequestError:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let other runs have the folder."""
        if self._lock is not None:
            self._lock.close()

    def bind(self) -> None:
        """Make the folder this run's for good. Before, only the lock keeps others out, which goes with this process."""
        for kind, values in self._bound.items():
            if self.read_json(f"{kind}.json") != values:
                self.write_json(f"{kind}.json", values)

    def discard(self, names: Iterable[str]) -> None:
        """Remove results that no longer hold."""
        for path in (self.path / name for name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def note_precision(self, phase: str, choice: PrecisionChoice) -> None:
        """Keep what a phase computes in. One that goes on elsewhere in another precision has both."""
        known = self.read_json(PRECISION) or {}
        noted = known.get(phase, "").split(", then ")
        if noted[-1] != choice.precision:
            self.write_json(PRECISION, known | {phase: ", then ".join([*filter(None, noted), choice.precision])})

    def read_json(self, name: str) -> Any:
        """The content of a result that was written to its end, or None."""
        return read_json(self.path / name)

    def write_json(self, name: str, value: Any) -> None:
        """Write a result whole or not at all: a reader takes its presence for its being finished."""
        if not ranks.first():
            return
        temporary = self.path / f".{name}.partial"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the name with nothing in it
        temporary.replace(self.path / name)


def check_usable(path: Path, settings: dict[str, Any], *, extensible: bool = False) -> None:
    """Refuse, without making it, a folder that a run with these settings could not have now.

    Raises:
        RequestError: it is no folder, it belongs to a run with other settings, or another run is at work in it.
    """
    if not path.is_dir():
        there = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
        if not there.is_dir():
            raise _no_folder(path)
        return
    _check_bound(path, "settings", settings, extensible=extensible)
    if ranks.first() and (path / _LOCK).exists():
        _lock(path / _LOCK).close()


def _no_folder(path: Path) -> RequestError:
    return RequestError(f"{path} is not a folder, or lies below a file: choose another --out")


def _check_bound(path: Path, kind: str, values: dict[str, Any], *, extensible: bool = False) -> list[str]:
    """Going on under other settings, or on other data, would publish a model that is neither run's.

    Returns the settings that make training longer, if it is `extensible`.
    """
    known = read_json(path / f"{kind}.json")
    if known is None:
        return []
    before, now = dict(dotted(known)), dict(dotted(values))
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    changed = [key for key in changed if _last(key) not in TRACELESS_KEYS | LOOK_KEYS]
    changed = [key for key in changed if not _same_update(before, now, key)]
    longer = [key for key in changed if extensible and _last(key) in LENGTH_KEYS and _grows(before, now, key)]
    refused = [key for key in changed if key not in longer]
    if refused:
        raise RequestError(
            f"{path} holds a run with other {kind} ({', '.join(refused)} differ): "
            "choose another --out, or remove the folder to start over"
        )
    return longer


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _same_update(before: dict[str, Any], now: dict[str, Any], key: str) -> bool:
    """Whether the key only splits the rows of an update otherwise, as one does after the memory was full."""
    if _last(key) not in BATCH_KEYS:
        return False
    phase = key.removesuffix(_last(key))
    rows = {math.prod(settings.get(phase + each, 1) for each in BATCH_KEYS) for settings in (before, now)}
    return len(rows) == 1


def _grows(before: dict[str, Any], now: dict[str, Any], key: str) -> bool:
    """Whether both are numbers, the later one the higher: none stands for as many steps as the epochs take."""
    old, new = before.get(key), now.get(key)
    return old is not None and new is not None and new > old


def check_new_file(path: Path, flag: str) -> None:
    """Check, before any work, that a flag's file can be made.

    Raises:
        RequestError: there is something already, or no folder for it.
    """
    if os.path.lexists(path):
        raise RequestError(f"{path} already exists: give {flag} a new file")
    if not path.absolute().parent.is_dir():
        raise RequestError(f"{path} cannot be written: {path.parent} is not a folder")


def check_free(out: Path) -> None:
    """Refuse a folder that is not to be written into.

    Raises:
        RequestError: there is something, and it is no empty folder.
    """
    empty = out.is_dir() and not out.is_symlink() and not any(out.iterdir())
    if not empty and os.path.lexists(out):
        raise RequestError(f"{out} already exists: give --out a new folder or an empty one")


def read_json(path: Path) -> Any:
    """The content of a run's result, or None where there is none.

    Raises:
        RequestError: it cannot be read as JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise RequestError(f"{path} is damaged ({error}): remove it to let the run continue") from error


def _lock(path: Path) -> TextIO:
    """Hold a file for the life of this process; the system lets go of it however the process ends.

    Raises:
        RequestError: another run holds it.
    """
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RequestError(f"another run is at work in {path.parent}: wait for it, or choose another --out") from None
    return file
