"""The shapes worth having: no other shape is both better and faster."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over several seeds."""

    mean: float
    deviation: float | None  # sample standard deviation (n - 1); None for a single seed
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of one or more values."""
        deviation = stdev(values) if len(values) > 1 else None
        return cls(mean=fmean(values), deviation=deviation, least=min(values), most=max(values))


def grouped(items: Iterable[tuple[K, V]]) -> dict[K, list[V]]:
    """Values by key; keys and values keep their order."""
    groups: dict[K, list[V]] = {}
    for key, value in items:
        groups.setdefault(key, []).append(value)
    return groups


def frontier(figures: Sequence[tuple[float, float]]) -> list[int]:
    """The Pareto set of (quality, speed) pairs, higher being better in both, as indices; slowest first.

    A pair is excluded if another one is at least as good in both and better in one. Equal pairs are kept together.
    """
    return sorted(
        (i for i, pair in enumerate(figures) if not any(_dominates(other, pair) for other in figures)),
        key=lambda i: (figures[i][1], i),
    )


def fastest_within(figures: Sequence[tuple[float, float]], least_quality: float) -> int | None:
    """The index of the fastest (quality, speed) pair of at least that quality; None if there is none."""
    places = [i for i, (quality, _) in enumerate(figures) if quality >= least_quality]
    return max(places, key=lambda i: (figures[i][1], figures[i][0]), default=None)


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one != other
