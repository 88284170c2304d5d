"""When requests are sent and to which variant: seeded, and nothing here knows of a clock."""

import random
from collections.abc import Iterator, Sequence
from itertools import accumulate, count

from loadtest.client.workload import Workload


def poisson_arrivals(rate_per_s: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests arrive: independent exponential gaps of mean `1 / rate_per_s`.

    The times are the same however slowly they are asked for, so a client that falls behind cannot thin them out.
    """
    draw = random.Random(f"{seed}/arrivals")
    at_s = 0.0
    while True:
        at_s += draw.expovariate(rate_per_s)
        yield at_s


def weighted_choices(weights: Sequence[float], seed: int) -> Iterator[int]:
    """Indices into `weights`, drawn independently in their proportion.

    Independent draws split a Poisson process into Poisson processes, one for each variant; taking turns would not.
    """
    draw = random.Random(f"{seed}/variants")
    bounds = list(accumulate(weights))
    while True:
        yield draw.choices(range(len(weights)), cum_weights=bounds)[0]


class RequestOrder:
    """Which variant comes next, and which text it gets.

    Each variant walks through the same shuffle of the workload by itself, round after round: all of them see the
    same texts in the same order, at whatever weights.
    """

    def __init__(self, workload: Workload, weights: Sequence[float], seed: int) -> None:
        self._order = workload.shuffled(seed)
        self._choices = weighted_choices(weights, seed)
        self._walks = [count() for _ in weights]

    def __next__(self) -> tuple[int, int]:
        """The index of a variant and the index of a text."""
        variant = next(self._choices)
        return variant, self._order[next(self._walks[variant]) % len(self._order)]
