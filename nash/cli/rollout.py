"""`nash rollout`: let a variant take over a model's requests step by step, and back if it breaks a bound."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from nash.cli.admin import DEFAULT_SERVER, KeyOption, ServerOption
from nash.cli.output import JsonOption, print_json, progress_console, result_console
from nash.errors import RequestError
from nash.remote.server import RemoteServer
from nash.rollout.rollout import Rollout, RolloutPlan
from nash.rollout.slo import Slo


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model.")],
    source: Annotated[str, typer.Option("--from", help="The variant that answers now.")],
    target: Annotated[str, typer.Option("--to", help="The variant that is to take over.")],
    steps: Annotated[str, typer.Option(help="Its share at each step, in percent.")] = "1,10,50,100",
    slo: Annotated[
        Path | None,
        typer.Option(help="TOML: max_error_ratio (0.01 if nothing is said), p95_ms, min_speedup, min_agreement."),
    ] = None,
    step_s: Annotated[float, typer.Option("--step-s", min=1, help="How long each step is watched at least.")] = 60.0,
    requests: Annotated[
        int, typer.Option(min=1, help="How many of its answers, and how many pairs, each step needs.")
    ] = 50,
    patience_s: Annotated[
        float, typer.Option("--patience-s", min=0, help="How much longer a step waits for them.")
    ] = 600.0,
    shadow: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the old variant's answers that run on the new one too.")
    ] = 0.1,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report there, as JSON.")] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move a model's requests to another variant; roll back by itself if a bound is broken. Exit code 1 then."""
    bounds = Slo() if slo is None else Slo.read(slo)
    plan = RolloutPlan(
        model=name,
        source=source,
        target=target,
        steps=_steps(steps),
        slo=bounds,
        step_s=step_s,
        requests=requests,
        patience_s=patience_s,
        shadow=shadow,
    )
    if not shadow and (bounds.min_speedup is not None or bounds.min_agreement is not None):
        raise RequestError("min_speedup and min_agreement are judged by the shadow: give --shadow above 0")
    console = progress_console()
    done = Rollout(RemoteServer.at(server, api_key), plan, lambda line: console.print(line, soft_wrap=True)).run()
    report = {
        "model": name,
        "from": source,
        "to": target,
        "slo": vars(bounds),
        "rolled_back": done[-1].why is not None,
        "steps": [step.document() for step in done],
    }
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="ascii")
    if as_json:
        print_json(report)
    else:
        for step in done:
            p95 = "-" if step.window.p95_ms is None else f"{step.window.p95_ms:.1f} ms"
            line = f"{step.percent:5g} %  {step.window.answered} answers, {step.window.failed} failed, p95 {p95}"
            if step.pairs:
                line += f"; {step.pairs} pairs, {step.speedup:.2f} times as fast, {step.agreement:.0%} agree"
            result_console().print(line, soft_wrap=True)
        result_console().print(
            f"rolled back: {done[-1].why}"
            if done[-1].why
            else f"{done[-1].percent:g} % of {name} is answered by {target} now",
            soft_wrap=True,
        )
    if done[-1].why is not None:
        sys.stdout.flush()
        raise typer.Exit(1)


def _steps(text: str) -> list[float]:
    try:
        steps = [float(part) for part in text.split(",")]
    except ValueError:
        steps = []
    if not steps or any(not 0 < step <= 100 for step in steps) or steps != sorted(set(steps)):
        raise RequestError(f"--steps {text!r}: give ascending percentages up to 100, as in 1,10,50,100")
    return steps
