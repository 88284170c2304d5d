"""`report.html`: one self-contained page, with the main result first."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from loadtest.results.speedup import MIN_BLOCKS
from loadtest.results.summary import Run
from loadtest.results.verdict import MAX_LAG_SHARE, server_failed

ABSENT = "\N{EN DASH}"


def headlines(summary: Mapping[str, Any]) -> list[str]:
    """One sentence per compared variant. A void run gets one sentence that says so instead."""
    verdict = summary["verdict"]
    if verdict["void"] and server_failed(summary["variants"]):
        return ["Requests failed, and the client fell behind its own schedule: nothing can be said about speed"]
    if verdict["void"]:
        return ["This run is void: the client fell behind its own schedule"]
    asked = {figures["ref"]: figures["n"] > 0 for figures in summary["variants"]}
    names = {figures["ref"]: figures["name"] for figures in summary["variants"]}
    baseline = names[summary["baseline"]]
    compared = summary["speedups"]["by_ref"]
    if not compared:
        return [f"{baseline} alone: nothing to compare it with"]
    # A variant that refuses the requests that would have waited longest looks fast.
    only = "Among answered requests alone: " if any(figures["failed"] for figures in summary["variants"]) else ""
    sentences = []
    for ref, ratios in compared.items():
        if ratios["latency"] is not None:
            sentences.append(only + _sentence(names[ref], baseline, ratios["latency"]))
        else:
            why = "answered nothing" if asked[ref] and asked[summary["baseline"]] else "was sent nothing"
            sentences.append(f"{names[ref]} cannot be compared with {baseline}: one of them {why}")
    return sentences


def banners(summary: Mapping[str, Any]) -> list[str]:
    """What is wrong with the run, with the main cause first."""
    void, problems = summary["verdict"]["void"], summary["verdict"]["problems"]
    lines = [*problems, void] if server_failed(summary["variants"]) else [void, *problems]
    return [line for line in lines if line]


def _sentence(name: str, baseline: str, ratios: Mapping[str, Any]) -> str:
    mean = ratios["mean"]
    if mean["low"] is None:
        return f"{name} answers {times(mean['ratio'])} as fast as {baseline}, in a run too short for an interval"
    interval = f"({mean['low']:.2f} to {mean['high']:.2f})"
    claim = f"{name} answers {times(mean['ratio'])} as fast as {baseline} {interval}"
    if mean["low"] <= 1 <= mean["high"]:
        return f"No difference that this run could tell: {claim}"
    return claim if mean["ratio"] > 1 else f"{claim}, which is slower"


def times(ratio: float) -> str:
    """A ratio as text, such as 1.50x."""
    return f"{ratio:.2f}x"


def milliseconds(value: float | None) -> str:
    """Milliseconds as text, with three significant digits: more than a run reproduces."""
    if value is None:
        return ABSENT
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def per_second(value: float | None) -> str:
    """A rate as text."""
    return ABSENT if value is None else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def render(run: Run, summary: Mapping[str, Any]) -> str:
    """The whole page."""
    # Imported late: plots import matplotlib, which takes longer than everything else before the load.
    from loadtest.report.plots import TONES, Series, distribution_plot, timeline_plot

    measured = run.measured.answered()
    series = []
    for target in run.targets:
        rows = measured.of(target.ref)
        series.append(Series(name=target.name, at_s=rows.intended_s - run.plan.warmup_s, latency_ms=rows.latency_ms))
    environment = Environment(
        loader=PackageLoader("loadtest.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"times": times, "ms": milliseconds, "rate": per_second}
    return environment.get_template("report.html.jinja").render(
        summary=summary,
        plan=summary["plan"],
        loop=run.plan.loop,
        headlines=headlines(summary),
        banners=banners(summary),
        tones={target.ref: i % TONES for i, target in enumerate(run.targets)},
        names={target.ref: target.name for target in run.targets},
        baseline=run.baseline,
        min_blocks=MIN_BLOCKS,
        max_lag_percent=round(MAX_LAG_SHARE * 100),
        # Safe as markup: this program makes them from numbers alone.
        distribution=Markup(distribution_plot(series)),
        timeline=Markup(timeline_plot(series, run.measured_s)),
    )
