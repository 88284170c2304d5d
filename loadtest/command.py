"""The command line of the load test."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loadtest.errors import InterruptedRunError, LoadtestError, UsageError
from loadtest.loaded_models import API_KEY_VARIABLE, checked_host
from loadtest.plan import Plan, parse_duration_s
from loadtest.report.report import headlines, milliseconds, per_second, times
from loadtest.results.summary import to_json
from loadtest.run import Result, run_loadtest

_DEFAULT_USERS = 4

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def run() -> None:
    """Exit codes: 0 done; 1 the run failed or its figures are unreliable; 2 the request was wrong; 130 interrupted."""
    try:
        app(prog_name="nash loadtest")
    except LoadtestError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 130 if isinstance(error, InterruptedRunError) else 1)
    except OSError as error:  # a full disk, a folder without permission: the system's message is the best there is
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)


@app.command(epilog=f"For a server with API keys, set the variable {API_KEY_VARIABLE} to one of them.")
def loadtest(
    workload: Annotated[Path, typer.Option("--workload", help='JSONL file of {"source": text} rows.')],
    host: Annotated[str, typer.Option("--host", help="The server's address.")] = "http://127.0.0.1:8000",
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="REF[,weight=N]",
            help="A variant, and its share of the requests; repeat it. Default: all of the first model's family.",
        ),
    ] = None,
    users: Annotated[
        int | None,
        typer.Option("--users", help=f"Closed loop: requests in flight at any time; default: {_DEFAULT_USERS}."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="Open loop: requests per second, at random times, however slow the server."),
    ] = None,
    duration: Annotated[str, typer.Option("--duration", help="Measured time: 90, 90s, 2m or 1h.")] = "60s",
    warmup: Annotated[str, typer.Option("--warmup", help="Load before that, left out of every figure.")] = "5s",
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", help="Default: each model's own limit.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of arrivals, choice of variants, order of texts.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the report; default: runs/loadtest-<time>.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
) -> None:
    """Put variants of a model under load side by side, and report how much faster each one answers."""
    plan = Plan(
        host=checked_host(host),
        models=tuple(models or ()),
        workload=workload,
        users=_DEFAULT_USERS if users is None and rate is None else users,
        rate_per_s=rate,
        duration_s=parse_duration_s("--duration", duration),
        warmup_s=parse_duration_s("--warmup", warmup),
        max_new_tokens=max_new_tokens,
        seed=seed,
        out=out,
    )
    progress = Console(stderr=True, highlight=False, markup=False)
    result = run_loadtest(plan, progress)
    if as_json:
        sys.stdout.write(to_json(result.summary))
    else:
        _print(result)
    progress.print(f"report: {result.out / 'report.html'}")
    if not result.verdict.ok:
        print(f"error: {result.verdict.line()}", file=sys.stderr)
    if result.interrupted:
        raise typer.Exit(130)
    if not result.verdict.ok:
        raise typer.Exit(1)


def _print(result: Result) -> None:
    """Print the result for human readers."""
    console = Console(highlight=False, markup=False)
    console.print(_table(result.summary))
    for sentence in headlines(result.summary):
        console.print(sentence)


def _table(summary: Mapping[str, Any]) -> Table:
    table = Table("latency, ms")
    for name in ("ok", "failed", "req/s", "mean", "p50", "p95", "p99", "speed-up"):
        table.add_column(name, justify="right")
    for figures in summary["variants"]:
        latency = figures["latency_ms"] or {}
        ratios = summary["speedups"]["by_ref"].get(figures["ref"], {}).get("latency")
        table.add_row(
            figures["name"],
            str(figures["ok"]),
            str(figures["n"] - figures["ok"]),
            per_second(figures["requests_per_s"]),
            *(milliseconds(latency.get(name)) for name in ("mean", "p50", "p95", "p99")),
            times(ratios["mean"]["ratio"]) if ratios else "",
        )
    return table
