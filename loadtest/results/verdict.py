"""Decide whether a run's figures are reliable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.client.rows import TOO_MANY_IN_FLIGHT

LAG_PERCENTILES = ("p50", "p95", "p99")
MAX_LAG_SHARE = 0.1  # of the fastest variant's latency at the same percentile
MAX_LAG_UNANSWERED_MS = 1000.0  # if nothing was answered, so that there is no latency to compare with


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is wrong with a run; nothing if `void` is None and there are no `problems`."""

    void: str | None  # why its figures measure the client and not the server
    problems: tuple[str, ...]
    failures_first: bool = False  # whether the problems explain more than the lag does

    @property
    def ok(self) -> bool:
        """Whether the figures are reliable as they are."""
        return self.void is None and not self.problems

    def line(self) -> str:
        """Everything in one line."""
        parts = (*self.problems, self.void) if self.failures_first else (self.void, *self.problems)
        return "; ".join(filter(None, parts))


def lag_limits(latencies: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The largest lag allowed at each of LAG_PERCENTILES; `latencies` has the latency spread of each variant."""
    if not latencies:
        return dict.fromkeys(LAG_PERCENTILES, MAX_LAG_UNANSWERED_MS)
    return {q: MAX_LAG_SHARE * min(latency[q] for latency in latencies) for q in LAG_PERCENTILES}


def server_failed(variants: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any sent request failed. Requests that the client never sent say nothing about the server."""
    return any(kind != TOO_MANY_IN_FLIGHT for figures in variants for kind in figures["failed"])


def judge(
    variants: Sequence[Mapping[str, Any]], lag_ms: Mapping[str, float] | None, *, troubles: Sequence[str] = ()
) -> Verdict:
    """Judge the figures of all variants. `lag_ms` is None for a closed loop, which has no lag.

    `troubles` lists what went wrong with the run itself.
    """
    latencies = [figures["latency_ms"] for figures in variants if figures["latency_ms"] is not None]
    void = None
    if lag_ms is not None:
        late = [(q, lag_ms[q], limit) for q, limit in lag_limits(latencies).items() if lag_ms[q] > limit]
        if late:
            q, lag, limit = late[0]
            void = (
                f"void: {q} of the client's lag behind its schedule is {lag:.2f} ms, over the limit of {limit:.2f} ms: "
                "lower --rate, or run the client and the server on different machines"
            )
    problems = [*troubles, *(_silence(figures) for figures in variants if not figures["ok"])]
    failed = sum(figures["n"] - figures["ok"] for figures in variants)
    if failed:
        kinds = sorted({kind for figures in variants for kind in figures["failed"]})
        total = sum(figures["n"] for figures in variants)
        problems.append(f"{failed} of {total} requests failed ({', '.join(kinds)})")
    return Verdict(void=void, problems=tuple(problems), failures_first=server_failed(variants))


def _silence(figures: Mapping[str, Any]) -> str:
    if figures["n"]:
        return f"{figures['name']} answered no request"
    return f"{figures['name']} was sent no request in the measured time: give a longer --duration, or more load"
