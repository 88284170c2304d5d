"""Measurements in stages of which nothing is lost, for a machine that is lent for minutes.

Each stage runs in a process of its own, so that a crash, a hang or spoilt device memory ends that stage alone. What it
measures comes in parts, and the file is written anew, whole or not at all, after each of them. A stage whose time is up
begins no further part, and is killed if the part at hand does not end either. Called again with the same file, a run
goes on with the parts that are missing; a file of other code, another machine or other sizes is put aside first.
"""

import gc
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

Json = Any
Document = dict[str, Json]
T = TypeVar("T")

# A stage that is not over so long after its time is killed; a part may be of a few calls, but no longer.
GRACE_S = 10.0

# With less than this no stage begins: it would spend it on starting.
LEAST_S = 5.0

DONE, CUT_SHORT, FAILED, NOT_RUN = "done", "cut short", "failed", "not run"

_TRACEBACK_LINES = 30


class TimeUpError(Exception):
    """A stage's time is over."""


class NotPossibleError(Exception):
    """A stage cannot be run on this machine."""


class Recorder:
    """What a stage tells its parts and lines to."""

    def __init__(self, send: Callable[[tuple[str, Json]], None], known: Collection[str], until_s: float) -> None:
        """`known`: the parts that an earlier run has measured; `until_s`: on the clock `time.monotonic`."""
        self._send = send
        self._known = known
        self._until_s = until_s
        self.failed = False

    @property
    def left_s(self) -> float:
        """Seconds until the stage's time is up, 0 where it is."""
        return max(0.0, self._until_s - time.monotonic())

    def line(self, text: str) -> None:
        """Print something."""
        self._send(("line", text))

    def note(self, name: str, value: Json) -> None:
        """Record a part that there is anyhow; it replaces that of an earlier run."""
        json.dumps(value, allow_nan=False)
        self._send(("part", (name, value)))

    def part(self, name: str, work: Callable[[], Json]) -> None:
        """Measure one part, unless it is known. An exception of it is recorded, and the next parts may go on.

        Raises:
            TimeUpError: the time is up; the part has not begun.
        """
        self.parts({name: lambda _: work()}, lambda: None)

    def parts(self, works: Mapping[str, Callable[[T], Json]], prepare: Callable[[], T]) -> None:
        """Measure several parts on one thing that takes long to make, which is not made where all are known.

        Raises:
            TimeUpError: the time is up; the parts from there on have not begun.
        """
        wanted = {name: work for name, work in works.items() if name not in self._known}
        if not wanted:
            return
        first = next(iter(wanted))
        self._begin(first)
        try:
            prepared = prepare()
        except Exception as error:  # noqa: BLE001  whatever it is, the other stages and parts are to be reached
            self._fail(first, error)
            return
        for name, work in wanted.items():
            self._begin(name)
            try:
                self.note(name, work(prepared))
            except TimeUpError:
                raise
            except Exception as error:  # noqa: BLE001  the same
                self._fail(name, error)
        del prepared
        gc.collect()

    def _begin(self, name: str) -> None:
        if not self.left_s:
            raise TimeUpError(f"the time was up before {name!r}")
        self._send(("begin", name))

    def _fail(self, name: str, error: Exception) -> None:
        self.failed = True
        told = {"error": one_line(error), "traceback": traceback.format_exception(error)[-_TRACEBACK_LINES:]}
        self._send(("failure", (name, told)))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A name, the seconds that it may take, and its work, which must be a function of a module."""

    name: str
    seconds: float
    work: Callable[[Recorder, Any], None]


def one_line(error: BaseException) -> str:
    """An exception's type, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def open_document(path: Path | None, key: Json, environment: Json) -> Document:
    """The document of an earlier run that has this key, or a new one.

    `path`: its file; one that holds anything else is renamed, and a line says so. None: there is none.
    """
    if path is not None and path.exists():
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["key"] == key:
                return dict(document)
            reason = "is of other code, another machine or other sizes"
        except (ValueError, KeyError, TypeError):
            reason = "is not of this benchmark"
        aside = next(each for i in range(1, 10**6) if not (each := path.with_stem(f"{path.stem}-{i}")).exists())
        path.rename(aside)
        print(f"{path} {reason}: it is {aside} now", flush=True)
    return {"key": key, "environment": environment, "stages": {}}


def write_document(path: Path | None, document: Document) -> None:
    """Replace the file, whole or not at all; None: there is none."""
    if path is None:
        return
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=2, allow_nan=False)
        file.write("\n")
    part.replace(path)


def run_stages(
    stages: Collection[Stage], setting: object, document: Document, path: Path | None, until_s: float
) -> None:
    """Run what the document has not, those stages first that no earlier run came to.

    `setting` is what the stages are told; `until_s`: when all must be over, on the clock `time.monotonic`.
    """
    entries = document["stages"]
    untried = [stage for stage in stages if entries.get(stage.name, {}).get("status", NOT_RUN) == NOT_RUN]
    tried = [stage for stage in stages if stage not in untried]
    for stage in [*untried, *tried]:
        entry = entries.get(stage.name, {"parts": {}, "failures": {}, "seconds": 0.0})
        if entry.get("status") == DONE:
            print(f"{stage.name}: was done before", flush=True)
            continue
        limit_s = min(stage.seconds, until_s - GRACE_S - time.monotonic())
        if limit_s < LEAST_S:
            print(f"{stage.name}: not begun, the time is up", flush=True)
            entries.setdefault(stage.name, entry | {"status": NOT_RUN, "reason": "the time was up"})
            write_document(path, document)
            continue
        print(f"{stage.name}: begins, at most {limit_s:.0f} s", flush=True)
        # The failed parts are tried again. Should this process be killed, what is in the file is true.
        entry |= {"status": CUT_SHORT, "reason": "the run ended within this stage", "failures": {}}
        entries[stage.name] = entry
        started_s = time.monotonic()
        run_stage(stage, setting, entry, started_s + limit_s, lambda: write_document(path, document))
        seconds = time.monotonic() - started_s
        entry["seconds"] = round(entry["seconds"] + seconds, 1)
        write_document(path, document)
        reason = f" ({entry['reason']})" if entry["reason"] else ""
        print(f"{stage.name}: {entry['status']} after {seconds:.1f} s{reason}", flush=True)


def run_stage(stage: Stage, setting: object, entry: Document, until_s: float, flush: Callable[[], None]) -> None:
    """Run one stage in a process of its own and put what comes of it into its entry; `flush` after each part."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([stage.work.__module__])  # imported once; no process that is copied has used CUDA
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(stage, setting, set(entry["parts"]), until_s, sender))
    process.start()
    assert process.pid is not None, "it was not started"
    sender.close()
    at = "its start"
    try:
        while True:
            if not receiver.poll(max(0.0, until_s + GRACE_S - time.monotonic())):
                entry["reason"] = f"killed {GRACE_S:.0f} s after its time, at {at!r}"
                return
            kind, content = receiver.recv()
            if kind == "line":
                print(f"  {content}", flush=True)
            elif kind == "begin":
                at = content
            elif kind == "part":
                entry["parts"][content[0]] = content[1]
                flush()
            elif kind == "failure":
                entry["failures"][content[0]] = content[1]
                print(f"  {content[0]}: {content[1]['error']}", flush=True)
                flush()
            else:
                entry["status"], entry["reason"] = content
                return
    except EOFError:
        process.join()
        entry["status"], entry["reason"] = FAILED, f"its process died with exit code {process.exitcode}, at {at!r}"
    finally:
        receiver.close()
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it is over, or has not come to its group yet
            process.kill()
        process.join()


def _work(stage: Stage, setting: object, known: set[str], until_s: float, sender: Connection) -> None:
    """What the stage's process does; the last message tells how it ended."""
    os.setpgid(0, 0)  # so that what it starts is ended with it
    record = Recorder(sender.send, known, until_s)
    status, reason = DONE, ""
    try:
        stage.work(record, setting)
    except TimeUpError as error:
        status, reason = CUT_SHORT, str(error)
    except NotPossibleError as error:
        status, reason = NOT_RUN, str(error)
    except Exception as error:  # noqa: BLE001  whatever it is, the other stages are to be reached
        record._fail("outside of any part", error)
    if record.failed and status == DONE:
        status, reason = FAILED, "its failures are told beside its parts"
    sender.send(("end", (status, reason)))
