"""Elimination against least squares: which part goes, and how the others make up for it."""

from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from nash.structure.elimination import eliminate

ROWS, OUTPUTS = 200, 5


def task(parts: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated inputs [N, I] and a matrix [O, I]."""
    generator = torch.Generator().manual_seed(seed)
    inputs = parts * columns
    mixed = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(ROWS, inputs, generator=generator, dtype=torch.float64) @ mixed
    return x, torch.randn(OUTPUTS, inputs, generator=generator, dtype=torch.float64)


def error(x: Tensor, weight: Tensor, other: Tensor) -> float:
    return float((x @ weight.T - x @ other.T).square().sum())


def refitted(x: Tensor, weight: Tensor, columns: Tensor) -> Tensor:
    """The matrix with the least squared error whose other columns are zero."""
    found = torch.zeros_like(weight)
    found[:, columns] = torch.linalg.lstsq(x[:, columns], x @ weight.T).solution.T
    return found


@pytest.mark.parametrize("columns", [1, 3])
def test_the_first_part_to_go_is_the_one_that_costs_least(columns: int) -> None:
    x, weight = task(6, columns)
    (found,) = eliminate(weight, x.T @ x, columns, [5])
    every = torch.arange(6 * columns).view(6, columns)
    errors = {}
    for left in combinations(range(6), 5):
        errors[left] = error(x, weight, refitted(x, weight, every[list(left)].flatten()))
    best = min(errors, key=errors.__getitem__)
    assert tuple(found.kept.nonzero().flatten().tolist()) == best
    assert error(x, weight, found.weight_OI) == pytest.approx(errors[best], rel=0.2)  # damped


@pytest.mark.parametrize("columns", [1, 3])
def test_what_is_left_is_refitted_to_the_whole_outputs(columns: int) -> None:
    """Up to the damping, whose pull towards the old weights raises the error a little."""
    x, weight = task(8, columns, seed=1)
    found = list(eliminate(weight, x.T @ x, columns, [0, 2, 5, 7]))
    assert [int(each.kept.sum()) for each in found] == [7, 5, 2, 0]
    for wide, narrow in pairwise(found):
        assert bool((wide.kept | ~narrow.kept).all()), "a part that was gone came back"
    for each in found:
        own = each.kept.repeat_interleave(columns)
        assert not each.weight_OI[:, ~own].any()
        if own.any():
            least = error(x, weight, refitted(x, weight, own.nonzero().flatten()))
            plain = error(x, weight, weight * own)
            assert least <= error(x, weight, each.weight_OI) * (1 + 1e-9)
            assert error(x, weight, each.weight_OI) <= least + 0.05 * (plain - least)


def test_a_part_that_another_repeats_costs_nothing() -> None:
    x, weight = task(4, 1, seed=2)
    x[:, 3] = 2 * x[:, 1]
    (found,) = eliminate(weight, x.T @ x, 1, [3])
    assert not bool(found.kept[1] and found.kept[3])
    assert error(x, weight, found.weight_OI) < 0.01 * error(x, weight, torch.zeros_like(weight))


def test_inputs_that_are_always_zero() -> None:
    _, weight = task(4, 2)
    found = list(eliminate(weight, torch.zeros(8, 8), 2, [2, 0]))
    assert [int(each.kept.sum()) for each in found] == [2, 0]
    assert all(bool(each.weight_OI.isfinite().all()) for each in found)


def test_a_wide_matrix_loses_several_units_at_once() -> None:
    """One removal updates the whole inverse; the result is close to that of single removals."""
    x, weight = task(600, 1, seed=3)
    (found,) = eliminate(weight, x.T @ x, 1, [300])
    assert int(found.kept.sum()) == 300
    assert error(x, weight, found.weight_OI) < 0.5 * error(x, weight, weight * found.kept)
