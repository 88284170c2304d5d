"""Stages that note what they do in the file `setting`, for processes of their own."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.gpu.staged import NotPossibleError, Recorder


def note(log: Path, text: str) -> str:
    with log.open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    return text


def fail(log: Path, text: str) -> str:
    note(log, text)
    raise ValueError(f"{text} is broken\nand more of it")


def quick(record: Recorder, log: Path) -> None:
    record.part("one", lambda: note(log, "quick one"))
    record.part("two", lambda: note(log, "quick two"))


def faulty(record: Recorder, log: Path) -> None:
    record.part("before", lambda: note(log, "before"))
    record.part("broken", lambda: fail(log, "broken"))
    record.part("no number", lambda: float("nan"))
    record.part("after", lambda: note(log, "after"))


def shared(record: Recorder, log: Path) -> None:
    works = {name: partial(lambda name, made: made + note(log, name), name) for name in ("first", "second")}
    record.parts(works, lambda: note(log, "made") + " for ")


def unmakable(record: Recorder, log: Path) -> None:
    record.parts({"first": lambda _: None, "second": lambda _: None}, lambda: fail(log, "making"))
    record.part("apart", lambda: note(log, "apart"))


def slow(record: Recorder, log: Path) -> None:
    for i in range(4):
        record.part(f"part {i}", partial(_wait, log, f"part {i}"))


def _wait(log: Path, text: str) -> str:
    time.sleep(0.4)
    return note(log, text)


def crashing(record: Recorder, log: Path) -> None:
    record.part("before", lambda: note(log, "before the crash"))
    record.part("crash", lambda: os.kill(os.getpid(), signal.SIGKILL))


def hanging(record: Recorder, log: Path) -> None:
    """Hangs for ever, with a process beside it that would go on for ever too."""
    record.part("before", lambda: note(log, "before the hang"))
    program = f"import os, pathlib, time\npathlib.Path({str(log)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    record.part("hang", lambda: subprocess.run([sys.executable, "-c", program], check=True))


def impossible(record: Recorder, log: Path) -> None:
    raise NotPossibleError("nothing to run it with")


def thrown(record: Recorder, log: Path) -> None:
    record.part("before", lambda: note(log, "before the end"))
    raise KeyError("outside")
