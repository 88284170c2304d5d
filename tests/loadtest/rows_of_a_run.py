"""Rows as a run would leave them."""

import numpy as np

from loadtest.client.rows import RequestRow
from loadtest.results.figures import Records


def row(
    ref: str = "g2p@dense",
    at_s: float = 0.0,
    latency_ms: float = 10.0,
    *,
    lag_ms: float = 0.0,
    outcome: str = "ok",
    tokens: int | None = 5,
) -> RequestRow:
    """One row; the server's part is 2 ms less than the latency."""
    total = latency_ms - 2 if outcome == "ok" else None
    return RequestRow(
        intended_s=at_s,
        lag_ms=lag_ms,
        latency_ms=latency_ms,
        service_ms=latency_ms - lag_ms,
        variant=ref.split("@")[1],
        ref=ref,
        status=200 if outcome == "ok" else 0,
        outcome=outcome,
        input=0,
        queue_ms=None if total is None else total * 0.25,
        encode_ms=None if total is None else total * 0.25,
        decode_ms=None if total is None else total * 0.5,
        total_ms=total,
        generated_tokens=tokens if outcome == "ok" else None,
    )


def steady_run(seconds: int, *, seed: int = 0, factor: float = 2.0, lag_ms: float = 0.1) -> list[RequestRow]:
    """Ten requests a second to each of two variants, the pruned one `factor` times as fast."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(seconds * 10):
        latency = float(draw.gamma(20, 1))
        rows.append(row("g2p@dense", i / 10, latency + 3, lag_ms=lag_ms))
        rows.append(row("g2p@pruned", i / 10 + 0.05, (latency + 3) / factor, lag_ms=lag_ms))
    return rows


def records(rows: list[RequestRow]) -> Records:
    """The rows as arrays."""
    return Records.from_rows(rows)
