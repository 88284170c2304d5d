"""Which decoder layers stay: the method's own examples, and what is refused."""

import math

import pytest

from nash.errors import RequestError
from nash.recipes.layer_selection import MOST_TRIALS, block_ends, search_layers, select_layers, trained_candidates


@pytest.mark.parametrize(
    ("keep", "kept"), [(1, (0,)), (2, (0, 11)), (3, (0, 5, 11)), (4, (0, 3, 7, 11)), (12, tuple(range(12)))]
)
def test_uniform(keep: int, kept: tuple[int, ...]) -> None:
    assert select_layers(12, keep) == kept


@pytest.mark.parametrize("total", range(1, 25))
def test_uniform_spans_the_decoder_without_repeats(total: int) -> None:
    for keep in range(2, total + 1):
        kept = select_layers(total, keep)
        assert (kept[0], kept[-1]) == (0, total - 1)
        assert len(set(kept)) == keep


def test_other_choices() -> None:
    assert select_layers(6, 2, "low") == (0, 1)
    assert select_layers(6, 2, "high") == (4, 5)
    assert select_layers(6, [1, 4], "high") == (1, 4)
    assert select_layers(6, None) == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("keep", [0, 7, -1, [], [0, 6], [3, 1], [1, 1], [-1, 2]])
def test_what_the_decoder_does_not_have(keep: int | list[int]) -> None:
    with pytest.raises(RequestError) as refusal:
        select_layers(6, keep)
    message = str(refusal.value)
    assert str(keep) in message
    assert "6" in message if isinstance(keep, int) else "0 to 5" in message


def test_block_ends() -> None:
    assert block_ends((0, 5, 11), 12) == (4, 10, 11)
    assert block_ends((0,), 12) == (11,)
    assert block_ends((2, 3), 6) == (2, 5)
    assert block_ends((0, 1, 2), 3) == (0, 1, 2)


def test_few_choices_are_all_tried() -> None:
    tried: list[tuple[int, ...]] = []

    def cost(kept: tuple[int, ...]) -> float:
        tried.append(kept)
        return abs(sum(kept) - 7)

    assert search_layers(6, 2, cost) == (2, 5)
    assert len(tried) == math.comb(6, 2)


def test_many_choices_leave_out_one_at_a_time() -> None:
    assert math.comb(12, 3) > MOST_TRIALS
    worth = [5, 0, 4, 1, 9, 2, 8, 3, 7, 0, 0, 6]
    assert search_layers(12, 3, lambda kept: -sum(worth[i] for i in kept)) == (4, 6, 8)


def test_candidates_to_train() -> None:
    """Every choice if they are few; else the named ones, once each."""
    assert trained_candidates(6, 1, (3,)) == [(0,), (1,), (2,), (3,), (4,), (5,)]
    assert trained_candidates(12, 2, (4, 9)) == [(0, 1), (0, 11), (4, 9), (10, 11)]
    assert trained_candidates(12, 2, (0, 11)) == [(0, 1), (0, 11), (10, 11)]
