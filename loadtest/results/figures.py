"""From raw rows to figures: counts, rates, percentiles. Pure; times are milliseconds unless a name says otherwise."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.client.rows import OK, RequestRow

PERCENTILES = (50, 90, 95, 99)
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Records:
    """Rows as arrays of equal length, in file order; NaN is a value that the server did not report."""

    intended_s: Floats
    lag_ms: Floats
    latency_ms: Floats
    service_ms: Floats
    queue_ms: Floats
    encode_ms: Floats
    decode_ms: Floats
    total_ms: Floats
    generated_tokens: Floats
    ref: NDArray[np.str_]
    outcome: NDArray[np.str_]

    @classmethod
    def from_rows(cls, rows: Iterable[RequestRow]) -> "Records":
        """Convert all rows to arrays."""
        gathered = list(rows)

        def column(name: str) -> Floats:
            return np.array([getattr(row, name) for row in gathered], dtype=np.float64)  # None becomes NaN

        return cls(
            intended_s=column("intended_s"),
            lag_ms=column("lag_ms"),
            latency_ms=column("latency_ms"),
            service_ms=column("service_ms"),
            queue_ms=column("queue_ms"),
            encode_ms=column("encode_ms"),
            decode_ms=column("decode_ms"),
            total_ms=column("total_ms"),
            generated_tokens=column("generated_tokens"),
            ref=np.array([row.ref for row in gathered], dtype=np.str_),
            outcome=np.array([row.outcome for row in gathered], dtype=np.str_),
        )

    def __len__(self) -> int:
        return len(self.intended_s)

    def where(self, chosen: NDArray[np.bool_]) -> "Records":
        """The rows for which `chosen` is true."""
        return Records(**{name: getattr(self, name)[chosen] for name in self.__dataclass_fields__})

    def between(self, start_s: float, end_s: float) -> "Records":
        """The rows due from `start_s` (included) to `end_s` (excluded)."""
        return self.where((self.intended_s >= start_s) & (self.intended_s < end_s))

    def of(self, ref: str) -> "Records":
        """The rows of one variant."""
        return self.where(self.ref == ref)

    def answered(self) -> "Records":
        """The successful rows. Only they count for latencies."""
        return self.where(self.outcome == OK)


def spread(values: Floats) -> dict[str, float] | None:
    """Mean, percentiles (linear between the two nearest values, numpy's default) and maximum; None if empty."""
    if len(values) == 0:
        return None
    percentiles = np.percentile(values, PERCENTILES)
    return {
        "mean": float(values.mean()),
        **{f"p{q}": float(value) for q, value in zip(PERCENTILES, percentiles, strict=True)},
        "max": float(values.max()),
    }


def failures(records: Records) -> dict[str, int]:
    """How many requests failed in each way, the most frequent first."""
    counts = Counter(str(outcome) for outcome in records.outcome if outcome != OK)
    return dict(sorted(counts.items(), key=lambda kind: (-kind[1], kind[0])))


def variant_figures(records: Records, duration_s: float) -> dict[str, Any]:
    """The figures of one variant, from its rows in `duration_s` seconds."""
    answered = records.answered()
    # If some answers have no token count, the sum of the others is not the rate of all.
    counted = len(answered) > 0 and not np.isnan(answered.generated_tokens).any()
    return {
        "n": len(records),
        "ok": len(answered),
        "failed": failures(records),
        "requests_per_s": len(answered) / duration_s if duration_s > 0 else None,
        "generated_tokens_per_s": float(answered.generated_tokens.sum()) / duration_s
        if counted and duration_s > 0
        else None,
        "latency_ms": spread(answered.latency_ms),
        "server_total_ms": spread(answered.total_ms),
        "server_mean_ms": {
            part: float(getattr(answered, f"{part}_ms").mean()) for part in ("queue", "encode", "decode")
        }
        if len(answered)
        else None,
        "outside_server_mean_ms": float((answered.latency_ms - answered.total_ms).mean()) if len(answered) else None,
    }


def lag_figures(records: Records) -> Mapping[str, float] | None:
    """How late requests were sent, failed ones included."""
    return spread(records.lag_ms)
