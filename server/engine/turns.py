"""Who takes part in a step, so that many rows of one request do not slow down those of others.

A step of thirty rows takes several times as long as a step of one. Rows are therefore of three kinds: those of requests
with few rows, those of requests with many, and those of batch priority. While there is one kind, every step has all
rows. While there are several, a step has the rows of one, and the kinds share the engine's time by weight: the next
step is that of the kind whose share would be used up last, counted to the step's expected end. So a light request
runs several short steps before one long one, every kind gets its share however much the others ask for, and none saves
up time while it has nothing to do. (This is weighted fair queueing.)
"""

from collections.abc import Collection, Mapping
from enum import StrEnum
from types import MappingProxyType


class Kind(StrEnum):
    """What a request is to others that run beside it."""

    LIGHT = "light"
    HEAVY = "heavy"  # it has asked for many rows
    BATCH = "batch"  # it said that it can wait


WEIGHTS: Mapping[Kind, float] = MappingProxyType({Kind.LIGHT: 1.0, Kind.HEAVY: 1.0, Kind.BATCH: 0.1})


class Turns:
    """Shares the time of one engine among kinds of requests."""

    def __init__(self) -> None:
        self._used = dict.fromkeys(Kind, 0.0)  # virtual seconds: time over weight
        self._step_s = dict.fromkeys(Kind, 0.0)  # what the last step of each took
        self._present: Collection[Kind] = ()

    def next(self, present: Collection[Kind]) -> Kind:
        """Whose step is next, of those that wait or run; ties go to the kind that is declared first."""
        stayed = [self._used[kind] for kind in present if kind in self._present]
        start = min(stayed, default=max(self._used.values()))
        for kind in present:
            if kind not in self._present:
                self._used[kind] = max(self._used[kind], start)
        self._present = present
        return min((kind for kind in Kind if kind in present), key=self._would_end)

    def spent(self, kind: Kind, seconds: float) -> None:
        """Note what a step of this kind alone took."""
        self._step_s[kind] = seconds
        self._used[kind] += seconds / WEIGHTS[kind]

    def _would_end(self, kind: Kind) -> float:
        return self._used[kind] + self._step_s[kind] / WEIGHTS[kind]
