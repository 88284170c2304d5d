"""Whether a run may be believed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LAG_PERCENTILES = ("p50", "p95", "p99")
MAX_LAG_SHARE = 0.1  # of the fastest variant's latency at the same percentile


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is wrong with a run; nothing, where both are empty."""

    void: str | None  # why its figures measure the client and not the server
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the figures stand as they are."""
        return self.void is None and not self.problems

    def line(self) -> str:
        """All of it in one line."""
        return "; ".join(filter(None, (self.void, *self.problems)))


def lag_limits(latencies: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The most lag that a run may have, at each of LAG_PERCENTILES; `latencies` has the spread of each variant."""
    return {q: MAX_LAG_SHARE * min(latency[q] for latency in latencies) for q in LAG_PERCENTILES}


def judge(variants: Sequence[Mapping[str, Any]], lag_ms: Mapping[str, float] | None) -> Verdict:
    """Judge the figures of all variants; `lag_ms` is that of an open loop, None for a closed one, which has none."""
    latencies = [figures["latency_ms"] for figures in variants if figures["latency_ms"] is not None]
    void = None
    if lag_ms is not None and latencies:
        late = [(q, lag_ms[q], limit) for q, limit in lag_limits(latencies).items() if lag_ms[q] > limit]
        if late:
            q, lag, limit = late[0]
            void = (
                f"void: {q} of the client's lag behind its schedule is {lag:.2f} ms and may be {limit:.2f} ms: "
                "lower --rate, or run the client on another machine than the server"
            )
    problems = [f"{figures['name']} answered no request" for figures in variants if not figures["ok"]]
    failed = sum(figures["n"] - figures["ok"] for figures in variants)
    if failed:
        kinds = sorted({kind for figures in variants for kind in figures["failed"]})
        total = sum(figures["n"] for figures in variants)
        problems.append(f"{failed} of {total} requests failed ({', '.join(kinds)})")
    return Verdict(void=void, problems=tuple(problems))
