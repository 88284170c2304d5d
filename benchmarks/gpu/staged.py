"""Measurements in stages that lose no results, for a machine that is available only for minutes.

Each stage runs in a separate process, so that a crash, a hang or corrupt device memory ends only that stage. A stage
measures in parts, and the file is rewritten, whole or not at all, after each of them. A stage whose time is up starts
no further part, and is killed if its current part does not end either. Called again with the same file, a run measures
the missing parts; a file from other code, another machine or other sizes is put aside first.
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

# A stage that still runs this long after its time is killed, so a part should not take longer.
GRACE_S = 10.0

# No stage starts with less time than this: it would spend it on its start.
LEAST_S = 5.0

DONE, CUT_SHORT, FAILED, NOT_RUN = "done", "cut short", "failed", "not run"

_TRACEBACK_LINES = 30


class TimeUpError(Exception):
    """A stage's time is up."""


class NotPossibleError(Exception):
    """A stage cannot be run on this machine."""


class Recorder:
    """Receives a stage's parts and lines."""

    def __init__(self, send: Callable[[tuple[str, Json]], None], known: Collection[str], until_s: float) -> None:
        """`known` are the parts that an earlier run measured; `until_s` is the deadline on `time.monotonic`."""
        self._send = send
        self._known = known
        self._until_s = until_s
        self.failed = False

    @property
    def left_s(self) -> float:
        """Seconds until the stage's time is up; 0 if it is."""
        return max(0.0, self._until_s - time.monotonic())

    def line(self, text: str) -> None:
        """Print a line."""
        self._send(("line", text))

    def note(self, name: str, value: Json) -> None:
        """Record a part without measuring; it replaces that of an earlier run."""
        json.dumps(value, allow_nan=False)
        self._send(("part", (name, value)))

    def part(self, name: str, work: Callable[[], Json]) -> None:
        """Measure one part, unless it is known. Its exception is recorded, and the next parts may go on.

        Raises:
            TimeUpError: the time is up; the part has not started.
        """
        self.parts({name: lambda _: work()}, lambda: None)

    def parts(self, works: Mapping[str, Callable[[T], Json]], prepare: Callable[[], T]) -> None:
        """Measure several parts on one object that takes long to make; it is not made if all parts are known.

        Raises:
            TimeUpError: the time is up; the remaining parts have not started.
        """
        wanted = {name: work for name, work in works.items() if name not in self._known}
        if not wanted:
            return
        first = next(iter(wanted))
        self._begin(first)
        try:
            prepared = prepare()
        except Exception as error:  # noqa: BLE001  whatever the error, go on with the other stages and parts
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
    """A name, the seconds that it may take, and its work, which must be a module-level function."""

    name: str
    seconds: float
    work: Callable[[Recorder, Any], None]


def one_line(error: BaseException) -> str:
    """An exception's type, and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def open_document(path: Path | None, key: Json, environment: Json) -> Document:
    """The document of an earlier run with this key, or a new one.

    `path` is its file, or None; a file with any other content is renamed, and a line says so.
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
    """Replace the file, whole or not at all; do nothing if `path` is None."""
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
    """Run the stages that the document lacks, starting with those that no earlier run reached.

    `setting` is passed to the stages; `until_s` is the deadline for all of them on `time.monotonic`.
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
        # Failed parts are tried again. If this process is killed, the file is still correct.
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
    """Run one stage in a separate process and put its results into its entry; call `flush` after each part."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([stage.work.__module__])  # imported once; the forked process has not used CUDA
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
        except ProcessLookupError:  # it has ended, or has not made its group yet
            process.kill()
        process.join()


def _work(stage: Stage, setting: object, known: set[str], until_s: float, sender: Connection) -> None:
    """The main function of the stage's process; its last message says how it ended."""
    os.setpgid(0, 0)  # so that its child processes are killed with it
    record = Recorder(sender.send, known, until_s)
    status, reason = DONE, ""
    try:
        stage.work(record, setting)
    except TimeUpError as error:
        status, reason = CUT_SHORT, str(error)
    except NotPossibleError as error:
        status, reason = NOT_RUN, str(error)
    except Exception as error:  # noqa: BLE001  whatever the error, go on with the other stages
        record._fail("outside of any part", error)
    if record.failed and status == DONE:
        status, reason = FAILED, "its failures are told beside its parts"
    sender.send(("end", (status, reason)))
