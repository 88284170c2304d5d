"""The choice of one option for every item that loses least within a budget: a multiple-choice knapsack.

Solved by dynamic programming over costs rounded up to a grid, so a choice never exceeds the budget.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_CELLS = 4000  # of the grid: a budget is divided into this many steps


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to treat an item."""

    cost: float
    loss: float


def cheapest(items: Sequence[Sequence[Option]], budget: float) -> list[int] | None:
    """For each item the number of the chosen option: the least total loss within the budget; None if none is."""
    if budget <= 0:
        return None
    best = np.zeros(_CELLS + 1)  # best[c]: the least loss of the items so far that cost at most c cells
    choices = []
    for item in items:
        found, choice = np.full_like(best, np.inf), np.zeros(len(best), dtype=np.int32)
        for number, option in enumerate(item):
            cells = _cells(option, budget)
            if cells > _CELLS:
                continue
            candidate = np.full_like(best, np.inf)
            candidate[cells:] = best[: _CELLS + 1 - cells] + option.loss
            better = candidate < found
            found[better], choice[better] = candidate[better], number
        best = found
        choices.append(choice)
    if not np.isfinite(best[-1]):
        return None
    chosen, cell = [], _CELLS
    for item, choice in zip(reversed(items), reversed(choices), strict=True):
        chosen.append(int(choice[cell]))
        cell -= _cells(item[chosen[-1]], budget)
    return chosen[::-1]


def _cells(option: Option, budget: float) -> int:
    return math.ceil(round(option.cost / budget * _CELLS, 6))
