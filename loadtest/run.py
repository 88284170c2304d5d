"""One load test, from the first query to the report."""

import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from loadtest.client.locust_process import STOP_S, LocustProcess
from loadtest.client.rows import RequestRow, compress, read_rows
from loadtest.client.workload import read_workload
from loadtest.errors import InterruptedRunError, LoadtestError
from loadtest.loaded_models import ServerClient, api_key, baseline_of, choose_targets
from loadtest.output_folder import LOG, check_unused, claim, whole_file
from loadtest.plan import Plan
from loadtest.report.report import render
from loadtest.results.figures import Records
from loadtest.results.progress import Progress
from loadtest.results.summary import Run, summarize, to_json
from loadtest.results.verdict import Verdict

_TICK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of a run."""

    summary: dict[str, Any]
    verdict: Verdict
    interrupted: bool
    out: Path


def run_loadtest(plan: Plan, console: Console) -> Result:
    """Put the server under load and write `summary.json`, `report.html`, `requests.csv.gz` and `locust.log`.

    Raises:
        RequestError: the workload, a REF, the API key or the output folder is wrong.
        InterruptedRunError: the user interrupted it before the first answer.
        LoadtestError: the server cannot be used, Locust failed before the first answer, or no report can be written.
    """
    workload = read_workload(plan.workload)
    check_unused(plan.out)
    server = ServerClient(plan.host, api_key())
    models = server.models()
    targets = choose_targets(plan.models, models)
    baseline = baseline_of(targets, models)
    info = server.info()
    out = claim(plan.out)
    rows, log = out / "requests.csv", out / LOG
    refs = ", ".join(target.ref for target in targets)
    console.print(f"{refs} under {plan.loop}: {plan.warmup_s:g} s to warm up, {plan.duration_s:g} s measured")
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    started, cpu_before_s = time.monotonic(), _children_cpu_s()
    with LocustProcess(plan, targets, rows=rows, log=log) as locust, Progress(plan, rows, console) as progress:
        interrupted, trouble = _attend(locust, progress, console)
    wall_s = time.monotonic() - started
    ended_early = interrupted or wall_s < plan.warmup_s + plan.duration_s
    if ended_early and not interrupted:
        trouble = trouble or f"Locust ended by itself: see {log}"
    readable, torn = _read(rows)
    if not readable and interrupted:
        raise InterruptedRunError(f"interrupted before the first answer: nothing to report, see {log}")
    if not readable and (trouble or not rows.exists()):
        raise LoadtestError(trouble or f"no request ended in the time that is measured: measure longer, or see {log}")
    troubles = [f"{trouble}; this report has only what it had recorded by then"] if trouble else []
    if torn:
        troubles.append(
            f"lines of {rows.name} that could not be read: {torn}; this report lacks at least as many requests"
        )
    run = Run(
        plan=plan,
        workload=workload,
        targets=targets,
        baseline=baseline,
        models=models,
        info=info,
        records=Records.from_rows(readable),
        started_at=started_at,
        interrupted=interrupted,
        ended_early=ended_early,
        troubles=tuple(troubles),
        client_cpu_s=_children_cpu_s() - cpu_before_s,
        client_wall_s=wall_s,
    )
    summary, verdict = summarize(run)
    with whole_file(out / "summary.json") as file:
        file.write(to_json(summary).encode("ascii"))
    with whole_file(out / "report.html") as file:
        # What a server reports about itself may contain half of a surrogate pair.
        file.write(render(run, summary).encode("utf-8", errors="replace"))
    compress(rows)
    return Result(summary=summary, verdict=verdict, interrupted=interrupted, out=out)


def _read(rows: Path) -> tuple[list[RequestRow], int]:
    """The rows, and the number of lines that are not rows."""
    if not rows.exists():
        return [], 0
    with rows.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        found = list(read_rows(lines))
    readable = [row for row in found if row is not None]
    return readable, len(found) - len(readable)


def _attend(locust: LocustProcess, progress: Progress, console: Console) -> tuple[bool, str | None]:
    """Wait for the end and show progress; return whether the run was interrupted, and what went wrong with Locust.

    The first Ctrl-C (or SIGTERM) stops the load and waits for requests in progress; the second one does not wait.
    """
    deadline = time.monotonic() + locust.longest_s
    with _sigterm_as_interrupt():
        try:
            while not locust.wait(_TICK_S):
                progress.update()
                if time.monotonic() > deadline:
                    locust.kill()
                    return (
                        False,
                        f"Locust did not end within {locust.longest_s:.0f} s and was killed: see its log",
                    )
        except KeyboardInterrupt:
            try:
                console.print("interrupted: waiting for the requests in flight; interrupt again to abandon them")
                locust.stop()
                ended = locust.wait(STOP_S + _TICK_S)
            except KeyboardInterrupt:
                ended = False
            return True, locust.trouble() if ended else None
    return False, locust.trouble()


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _children_cpu_s() -> float:
    """Processor time of the children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
