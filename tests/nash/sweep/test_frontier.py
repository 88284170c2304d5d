"""The Pareto set of quality and speed, and the spread over seeds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nash.sweep.frontier import Spread, fastest_within, frontier, grouped

DENSE, GOOD, FAST, WORSE, SLOWER = (80.0, 1.0), (79.0, 2.0), (70.0, 4.0), (69.0, 3.0), (78.0, 2.0)
# Few values, so that equal figures come up.
PAIRS = st.lists(st.tuples(st.sampled_from([1.0, 2.0, 3.0, 4.0]), st.sampled_from([1.0, 1.5, 2.0])), max_size=12)


def test_what_another_beats_is_left_out() -> None:
    assert frontier([FAST, DENSE, WORSE, GOOD, SLOWER]) == [1, 3, 0]


def test_equal_points_stay_together() -> None:
    assert frontier([GOOD, DENSE, GOOD]) == [1, 0, 2]


def test_one_point_and_none() -> None:
    assert frontier([GOOD]) == [0]
    assert frontier([]) == []


@given(PAIRS)
def test_the_frontier_is_what_nothing_beats(pairs: list[tuple[float, float]]) -> None:
    chosen = frontier(pairs)
    assert bool(chosen) == bool(pairs)
    assert [pairs[i][1] for i in chosen] == sorted(pairs[i][1] for i in chosen)
    assert [pairs[i][0] for i in chosen] == sorted((pairs[i][0] for i in chosen), reverse=True)
    for i, pair in enumerate(pairs):
        beaten = any(q >= pair[0] and s >= pair[1] and (q, s) != pair for q, s in pairs)
        assert (i in chosen) != beaten


def test_the_fastest_that_is_good_enough() -> None:
    pairs = [DENSE, GOOD, FAST, SLOWER]
    assert fastest_within(pairs, 79.5) == 0
    assert fastest_within(pairs, 77.0) == 1, "of two as fast, the better one"
    assert fastest_within(pairs, 10.0) == 2
    assert fastest_within(pairs, 90.0) is None


def test_the_spread_of_seeds() -> None:
    spread = Spread.of([1.0, 2.0, 6.0])
    assert (spread.mean, spread.least, spread.most) == (3.0, 1.0, 6.0)
    assert spread.deviation == pytest.approx(math.sqrt((4 + 1 + 9) / 2))


def test_one_seed_says_nothing_about_spread() -> None:
    assert Spread.of([2.5]) == Spread(mean=2.5, deviation=None, least=2.5, most=2.5)


def test_groups_keep_the_order() -> None:
    assert grouped([("b", 1), ("a", 2), ("b", 3)]) == {"b": [1, 3], "a": [2]}
    assert list(grouped([("b", 1), ("a", 2)])) == ["b", "a"]
