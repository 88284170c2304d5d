"""What a server's metrics say about one variant between two looks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]

_FAILED = ("error", "timeout", "rejected")  # whatever is not the caller's fault
_OK = "ok"


@dataclass(frozen=True, kw_only=True)
class Window:
    """One variant's requests in a stretch of time. `p95_ms` is None without answers."""

    answered: int
    failed: int
    p95_ms: float | None

    @property
    def error_ratio(self) -> float:
        """Of those that were answered or failed."""
        return self.failed / max(1, self.answered + self.failed)


def window(before: Samples, after: Samples, model: str, variant: str) -> Window:
    """The difference of two looks at /metrics."""
    own = {("model", model), ("variant", variant)}
    outcomes: dict[str, float] = {}
    buckets: dict[float, float] = {}
    for (name, labels), value in after.items():
        if not own <= labels:
            continue
        rest = dict(labels - own)
        change = value - before.get((name, labels), 0.0)
        if name == "nash_requests_total":
            outcomes[rest["outcome"]] = outcomes.get(rest["outcome"], 0.0) + change
        elif name == "nash_request_duration_seconds_bucket" and rest["mode"] != "compare":
            bound = float(rest["le"])
            buckets[bound] = buckets.get(bound, 0.0) + change
    return Window(
        answered=round(outcomes.get(_OK, 0.0)),
        failed=round(sum(outcomes.get(name, 0.0) for name in _FAILED)),
        p95_ms=_quantile(buckets, 0.95),
    )


def _quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """In milliseconds, within a bucket by linear interpolation, as Prometheus does."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    wanted, below, lower = share * total, 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted:
            if math.isinf(bound):
                return 1e3 * lower
            inside = buckets[bound] - below
            return 1e3 * (lower + (bound - lower) * (wanted - below) / inside if inside else bound)
        below, lower = buckets[bound], bound
    return 1e3 * lower
