"""The knapsack against every choice there is."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nash.structure.knapsack import Option, cheapest

# Costs that lie on the grid for every budget that is drawn, so that rounding up loses nothing.
options = st.builds(Option, cost=st.integers(0, 8).map(float), loss=st.integers(0, 9).map(float))


@settings(max_examples=200, deadline=None)
@given(items=st.lists(st.lists(options, min_size=1, max_size=4), min_size=1, max_size=4), budget=st.integers(1, 20))
def test_the_least_loss_of_all_choices_within_the_budget(items: list[list[Option]], budget: int) -> None:
    within = [
        choice
        for choice in product(*(range(len(item)) for item in items))
        if sum(item[i].cost for item, i in zip(items, choice, strict=True)) <= budget
    ]
    found = cheapest(items, float(budget))
    if found is None:
        # Rounding up may cost one step of the grid for each item.
        assert all(sum(item[i].cost for item, i in zip(items, c, strict=True)) > budget - 0.1 for c in within)
        return
    assert tuple(found) in within

    def loss(choice: tuple[int, ...]) -> float:
        return sum(item[i].loss for item, i in zip(items, choice, strict=True))

    roomy = [c for c in within if sum(item[i].cost for item, i in zip(items, c, strict=True)) <= budget - 0.1]
    assert loss(tuple(found)) <= min((loss(c) for c in roomy), default=loss(tuple(found)))


@pytest.mark.parametrize("budget", [0.0, -1.0])
def test_no_budget(budget: float) -> None:
    assert cheapest([[Option(cost=0.0, loss=1.0)]], budget) is None


def test_every_option_is_too_dear() -> None:
    assert cheapest([[Option(cost=0.0, loss=0.0)], [Option(cost=3.0, loss=0.0)]], 2.0) is None
