"""One load test from the first question to the report."""

import os
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

from loadtest.errors import LoadtestError, RequestError
from loadtest.figures import Records
from loadtest.loaded_models import API_KEY_VARIABLE, ServerClient, baseline_of, choose_targets
from loadtest.locust_process import STOP_S, LocustProcess
from loadtest.plan import Plan
from loadtest.progress import Progress
from loadtest.report import render
from loadtest.rows import compress, read_rows
from loadtest.summary import Run, summarize, write_json
from loadtest.verdict import Verdict
from loadtest.workload import read_workload

_TICK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run left."""

    summary: dict[str, Any]
    verdict: Verdict
    interrupted: bool
    out: Path


def run_loadtest(plan: Plan, console: Console) -> Result:
    """Put the server under load and write `summary.json`, `report.html`, `requests.csv.gz` and `locust.log`.

    Raises:
        RequestError: the workload, a REF or the output folder is wrong.
        LoadtestError: the server is not there, or Locust failed.
    """
    workload = read_workload(plan.workload)
    if plan.out.exists() and (not plan.out.is_dir() or any(plan.out.iterdir())):
        raise RequestError(f"--out {plan.out} is in use: give a folder that is new or empty")
    server = ServerClient(plan.host, os.environ.get(API_KEY_VARIABLE))
    models = server.models()
    targets = choose_targets(plan.models, models)
    baseline = baseline_of(targets, models)
    info = server.info()
    plan.out.mkdir(parents=True, exist_ok=True)
    rows, log = plan.out / "requests.csv", plan.out / "locust.log"
    refs = ", ".join(target.ref for target in targets)
    console.print(f"{refs} under {plan.loop}: {plan.warmup_s:g} s to warm up, {plan.duration_s:g} s measured")
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    started, cpu_before_s = time.monotonic(), _children_cpu_s()
    with LocustProcess(plan, targets, rows=rows, log=log) as locust, Progress(plan, rows, console) as progress:
        interrupted = _attend(locust, progress, console)
        if not interrupted:
            locust.check()
    wall_s = time.monotonic() - started
    if not rows.exists():
        raise LoadtestError(f"interrupted before the first request: nothing to report, see {log}")
    with rows.open(encoding="utf-8", newline="") as lines:
        records = Records.from_rows(read_rows(lines))
    run = Run(
        plan=plan,
        workload=workload,
        targets=targets,
        baseline=baseline,
        models=models,
        info=info,
        records=records,
        started_at=started_at,
        interrupted=interrupted,
        client_cpu_s=_children_cpu_s() - cpu_before_s,
        client_wall_s=wall_s,
    )
    summary, verdict = summarize(run)
    write_json(summary, plan.out / "summary.json")
    (plan.out / "report.html").write_text(render(run, summary), encoding="utf-8")
    compress(rows)
    return Result(summary=summary, verdict=verdict, interrupted=interrupted, out=plan.out)


def _attend(locust: LocustProcess, progress: Progress, console: Console) -> bool:
    """Wait for the end and show how it goes; whether the run was interrupted.

    The first Ctrl-C (or SIGTERM) stops the load and waits for what is under way; the second one does not wait.

    Raises:
        LoadtestError: Locust does not end.
    """
    deadline = time.monotonic() + locust.longest_s
    with _sigterm_as_interrupt():
        try:
            while not locust.wait(_TICK_S):
                progress.update()
                if time.monotonic() > deadline:
                    raise LoadtestError(f"Locust did not end within {locust.longest_s:.0f} s: look into its log")
        except KeyboardInterrupt:
            try:
                console.print("interrupted: waiting for the requests that are under way, once more to leave them")
                locust.stop()
                locust.wait(STOP_S + _TICK_S)
            except KeyboardInterrupt:
                pass
            return True
    return False


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
