"""How many times as fast one variant is as another, with a bootstrap interval.

Latencies close in time depend on each other: they share a queue, a batch and the machine's current state. A bootstrap
over single requests would treat them as independent and give intervals that are far too narrow. This one therefore
draws blocks of one second, the same seconds for both variants, which keeps what they had in common (Kuensch 1989, The
jackknife and the bootstrap for general stationary observations; here with non-overlapping blocks, Carlstein 1986).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.results.figures import Floats

PERCENTILES = (50, 95, 99)
STATISTICS = ("mean", *(f"p{q}" for q in PERCENTILES))
BLOCK_S = 1.0
MIN_BLOCKS = 10  # with fewer, an interval would reflect luck more than the run
RESAMPLES = 2000
LEVEL = 0.95
_LEAST_MS = 1e-6  # no clock can tell less from 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Latencies in ascending order, and the block that each falls into."""

    values: Floats
    blocks: NDArray[np.intp]

    @classmethod
    def of(cls, values: Floats, at_s: Floats) -> "Sample":
        """From values and when their requests were due, in seconds from the start of the measured time."""
        order = np.argsort(values, kind="stable")
        return cls(values=values[order], blocks=np.floor(at_s[order] / BLOCK_S).astype(np.intp))

    def statistics(self, repeats: NDArray[np.int64]) -> Floats:
        """STATISTICS of the sample in which every value of block `b` occurs `repeats[b]` times; NaN if it is empty.

        Equal to those of `np.repeat(values, repeats[blocks])`, but without building that array.
        """
        times = repeats[self.blocks]
        upto = np.cumsum(times)
        n = int(upto[-1]) if len(upto) else 0
        if n == 0:
            return np.full(len(STATISTICS), np.nan)
        positions = (n - 1) * np.array(PERCENTILES) / 100
        lower = np.floor(positions).astype(np.intp)
        upper = np.minimum(lower + 1, n - 1)
        at_lower = self.values[np.searchsorted(upto, lower, side="right")]
        at_upper = self.values[np.searchsorted(upto, upper, side="right")]
        percentiles = at_lower + (at_upper - at_lower) * (positions - lower)
        return np.concatenate([[times @ self.values / n], percentiles])


def speedup(baseline: Sample, variant: Sample, *, blocks: int, seed: int) -> dict[str, dict[str, Any]] | None:
    """Baseline over variant for each of STATISTICS: `{ratio, low, high}`, above 1 if the variant is faster.

    `blocks` is the run's number of blocks. `low` and `high` bound the 95 % interval; they are None if the run has fewer
    than MIN_BLOCKS. Returns None if one of the two has no answers, or has times of 0, which give no ratio.
    """
    if len(baseline.values) == 0 or len(variant.values) == 0:
        return None
    once = np.ones(blocks, dtype=np.int64)
    ratios = _ratios(baseline, variant, once)
    if np.isnan(ratios).any():
        return None
    low: list[float] | list[None] = [None] * len(STATISTICS)
    high: list[float] | list[None] = [None] * len(STATISTICS)
    if blocks >= MIN_BLOCKS:
        draws = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=RESAMPLES)
        resampled = np.array([_ratios(baseline, variant, draw) for draw in draws])
        # A draw may contain no answer of a variant that gets few requests.
        if not np.isnan(resampled).all(axis=0).any():
            tail = (1 - LEVEL) / 2
            low, high = np.nanquantile(resampled, [tail, 1 - tail], axis=0).tolist()
    return {
        name: {"ratio": float(ratio), "low": a, "high": b}
        for name, ratio, a, b in zip(STATISTICS, ratios, low, high, strict=True)
    }


def _ratios(baseline: Sample, variant: Sample, repeats: NDArray[np.int64]) -> Floats:
    """Baseline over variant for each of STATISTICS; NaN if one of them is 0 or a sample is empty."""
    above, below = baseline.statistics(repeats), variant.statistics(repeats)
    ratios: Floats = np.full(len(STATISTICS), np.nan)
    np.divide(above, below, out=ratios, where=(above > _LEAST_MS) & (below > _LEAST_MS))
    return ratios
