"""The output folder of a run: it belongs to one run alone, and never contains a partial file."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import BinaryIO

from loadtest.errors import LoadtestError, UsageError

LOG = "locust.log"


def check_unused(out: Path | None) -> None:
    """Refuse early what `claim` would refuse later.

    Raises:
        UsageError: `out` is a file or a folder that is not empty.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise _in_use(out)


def claim(out: Path | None) -> Path:
    """Make `out` this run's folder, with an empty log in it. If None, make a new one under runs/, named by the time.

    Raises:
        UsageError: `out` is in use, or another run claimed it first.
    """
    if out is None:
        return _claim_by_time()
    out.mkdir(parents=True, exist_ok=True)
    check_unused(out)
    try:
        (out / LOG).touch(exist_ok=False)  # if two runs saw an empty folder, only one creates this file
    except FileExistsError as error:
        raise _in_use(out) from error
    return out


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which gets its name only when complete.

    Raises:
        LoadtestError: it cannot be written; no partial file is left.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise LoadtestError(
            f"{path} cannot be written ({error.strerror or error}): what is left of the run is in its folder"
        ) from error


def _claim_by_time() -> Path:
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    name = f"loadtest-{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(1):
        out = runs / (name if number == 1 else f"{name}-{number}")
        try:
            out.mkdir()
        except FileExistsError:
            continue
        break
    (out / LOG).touch()
    return out


def _in_use(out: Path) -> UsageError:
    return UsageError(f"--out {out} is in use: give a folder that is new or empty")
