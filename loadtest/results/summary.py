"""`summary.json`: the plan, the server, the client, the figures and how reliable they are."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from loadtest.client.workload import TextWorkload
from loadtest.environment import client_environment
from loadtest.loaded_models import Target
from loadtest.plan import Plan
from loadtest.results.figures import Records, lag_figures, variant_figures
from loadtest.results.speedup import BLOCK_S, LEVEL, RESAMPLES, Sample, speedup
from loadtest.results.verdict import Verdict, judge, lag_limits

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was asked for and what came back."""

    plan: Plan
    workload: TextWorkload
    targets: Sequence[Target]
    baseline: Target
    models: list[dict[str, Any]]  # from GET /models
    info: Any  # from GET /info
    records: Records  # all rows, including the warm-up
    started_at: str  # ISO 8601
    interrupted: bool
    ended_early: bool  # by an interrupt, or because Locust ended by itself
    troubles: tuple[str, ...]  # what went wrong with the run itself, as messages for the user
    client_cpu_s: float  # processor time of Locust
    client_wall_s: float

    @property
    def measured(self) -> Records:
        """The rows from which the figures are computed."""
        return self.records.between(self.plan.warmup_s, self.end_s)

    @property
    def end_s(self) -> float:
        """When the measured time ended, counted from the start of the load: as planned, unless the run ended early.

        Not at the last request: in a closed loop, a server that hangs until the end gets no more requests.
        """
        planned = self.plan.warmup_s + self.plan.duration_s
        if not self.ended_early:
            return planned
        last_s = self.records.intended_s
        if not self.plan.open_loop:
            last_s = last_s + self.records.latency_ms / 1e3  # each user was busy until its last answer
        return min(planned, max(self.plan.warmup_s, float(last_s.max(initial=0.0))))

    @property
    def measured_s(self) -> float:
        """The length of the measured time."""
        return self.end_s - self.plan.warmup_s


def summarize(run: Run) -> tuple[dict[str, Any], Verdict]:
    """The document of `summary.json`, and the verdict that it contains."""
    measured = run.measured
    variants: list[dict[str, Any]] = [
        {"ref": target.ref, "name": target.name, "weight": target.weight}
        | variant_figures(measured.of(target.ref), run.measured_s)
        for target in run.targets
    ]
    lag_ms = lag_figures(measured) if run.plan.open_loop else None
    verdict = judge(variants, lag_ms, troubles=run.troubles)
    answered = [figures["latency_ms"] for figures in variants if figures["latency_ms"] is not None]
    document = {
        "format": FORMAT,
        "started_at": run.started_at,
        "interrupted": run.interrupted,
        "verdict": {"ok": verdict.ok, "void": verdict.void, "problems": list(verdict.problems)},
        "plan": _plan(run),
        "measured_s": run.measured_s,
        "requests": {
            "all": len(run.records),
            "warmup": len(run.records.between(0.0, run.plan.warmup_s)),
            "measured": len(measured),
            "after": int((run.records.intended_s >= run.end_s).sum()),
            "failed_outside": len(run.records) - len(run.records.answered()) - len(measured) + len(measured.answered()),
        },
        "baseline": run.baseline.ref,
        "variants": variants,
        "speedups": _speedups(run, measured),
        "lag_ms": lag_ms,
        "lag_limit_ms": lag_limits(answered) if lag_ms is not None else None,
        "client": client_environment()
        | {"cpu_s": run.client_cpu_s, "cpu_share_of_one_core": run.client_cpu_s / run.client_wall_s},
        "server": {"host": run.plan.host, "info": run.info, "models": run.models},
    }
    return document, verdict


def _plan(run: Run) -> dict[str, Any]:
    plan = run.plan
    return {
        "loop": "open" if plan.open_loop else "closed",
        "users": plan.users,
        "rate_per_s": plan.rate_per_s,
        "duration_s": plan.duration_s,
        "warmup_s": plan.warmup_s,
        "max_new_tokens": plan.max_new_tokens,
        "seed": plan.seed,
        "workload": {"name": run.workload.name, "sha256": run.workload.sha256, "rows": len(run.workload.sources)},
    }


def _speedups(run: Run, measured: Records) -> dict[str, Any]:
    """For each REF, the speed-up over the baseline by the client's latency and by the server's own total."""
    blocks = max(1, ceil(run.measured_s / BLOCK_S))

    def sample(ref: str, times: str) -> Sample:
        answered = measured.of(ref).answered()
        return Sample.of(getattr(answered, times), answered.intended_s - run.plan.warmup_s)

    def compared(ref: str, times: str) -> dict[str, dict[str, Any]] | None:
        return speedup(sample(run.baseline.ref, times), sample(ref, times), blocks=blocks, seed=run.plan.seed)

    return {
        "method": {"interval": LEVEL, "resamples": RESAMPLES, "block_s": BLOCK_S, "blocks": blocks},
        "by_ref": {
            target.ref: {"latency": compared(target.ref, "latency_ms"), "server": compared(target.ref, "total_ms")}
            for target in run.targets
            if target != run.baseline
        },
    }


def to_json(document: dict[str, Any]) -> str:
    """Strict JSON, in ASCII."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
