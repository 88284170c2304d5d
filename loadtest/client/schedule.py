"""When requests are sent and to which variant. Seeded and independent of any clock."""

import random
from collections.abc import Iterator, Sequence
from itertools import accumulate, count

from loadtest.client.workload import TextWorkload


def poisson_arrivals(rate_per_s: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests arrive: independent exponential gaps of mean `1 / rate_per_s`.

    The times do not depend on how fast they are consumed, so a client that falls behind cannot lower the rate.
    """
    draw = random.Random(f"{seed}/arrivals")
    at_s = 0.0
    while True:
        at_s += draw.expovariate(rate_per_s)
        yield at_s


def weighted_choices(weights: Sequence[float], seed: int) -> Iterator[int]:
    """Indices into `weights`, drawn independently in proportion to the weights.

    Independent draws split a Poisson process into one Poisson process per variant; taking turns would not.
    """
    draw = random.Random(f"{seed}/variants")
    bounds = list(accumulate(weights))
    while True:
        yield draw.choices(range(len(weights)), cum_weights=bounds)[0]


class RequestOrder:
    """Which variant comes next, and which text it gets.

    Each variant goes through the same shuffle of the workload on its own, round after round. All variants thus get the
    same texts in the same order, whatever their weights.
    """

    def __init__(self, workload: TextWorkload, weights: Sequence[float], seed: int) -> None:
        self._order = workload.shuffled(seed)
        self._choices = weighted_choices(weights, seed)
        self._walks = [count() for _ in weights]

    def __next__(self) -> tuple[int, int]:
        """The index of a variant and the index of a text."""
        variant = next(self._choices)
        return variant, self._order[next(self._walks[variant]) % len(self._order)]
