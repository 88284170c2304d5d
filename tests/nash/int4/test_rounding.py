"""Rounding to four bits: what it may give, and that data make it better than plain rounding."""

import pytest
import torch
from torch import Tensor

from nash.int4.rounding import LEAST, MOST, round_by_data, round_nearest


def weights_of(whole_OI: Tensor, steps_OG: Tensor) -> Tensor:
    return whole_OI.double() * steps_OG.double().repeat_interleave(32, dim=1)[:, : whole_OI.shape[1]]


def draw(outputs: int, inputs: int, rows: int = 400) -> tuple[Tensor, Tensor]:
    """A matrix, and inputs [N, I] that hang together and of which some are much larger."""
    generator = torch.Generator().manual_seed(inputs)
    mixed = torch.randn(rows, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    x_NI = mixed * torch.logspace(-1, 1, inputs)
    return torch.randn(outputs, inputs, generator=generator), x_NI.double()


@pytest.mark.parametrize(("outputs", "inputs"), [(16, 64), (40, 100), (3, 7), (1, 1)])
def test_numbers_that_four_bits_hold(outputs: int, inputs: int) -> None:
    weight_OI, x_NI = draw(outputs, inputs)
    for whole_OI, steps_OG in (round_nearest(weight_OI), round_by_data(weight_OI, x_NI.T @ x_NI)):
        assert whole_OI.dtype == torch.int8
        assert whole_OI.shape == weight_OI.shape
        assert LEAST <= whole_OI.min() <= whole_OI.max() <= MOST
        assert steps_OG.dtype == torch.float16
        assert steps_OG.shape == (outputs, -(-inputs // 32))


def test_plain_rounding_is_half_a_step_away_at_most() -> None:
    weight_OI, _ = draw(40, 100)
    whole_OI, steps_OG = round_nearest(weight_OI)
    error_OI = (weights_of(whole_OI, steps_OG) - weight_OI).abs()
    step_OI = steps_OG.abs().double().repeat_interleave(32, dim=1)[:, :100]
    cut = whole_OI == MOST  # beyond 7 steps there is nothing
    assert (error_OI[~cut] <= 0.501 * step_OI[~cut]).all()
    assert (error_OI <= 1.01 * step_OI).all()


@pytest.mark.parametrize(("outputs", "inputs"), [(40, 100), (64, 256)])
def test_outputs_on_the_data_change_less_than_by_plain_rounding(outputs: int, inputs: int) -> None:
    weight_OI, x_NI = draw(outputs, inputs, rows=4 * inputs)
    expected = x_NI @ weight_OI.double().T
    plain, ours = (
        (x_NI @ weights_of(*rounded).T - expected).norm()
        for rounded in (round_nearest(weight_OI), round_by_data(weight_OI, x_NI.T @ x_NI))
    )
    assert ours < 0.7 * plain


def test_errors_are_made_up_for_by_least_squares() -> None:
    """With two inputs that are all but equal, what the first loses the second takes over."""
    x_N = torch.randn(200, generator=torch.Generator().manual_seed(0)).double()
    x_NI = torch.zeros(200, 32, dtype=torch.float64)
    x_NI[:, 0], x_NI[:, 1], x_NI[:, 2] = x_N, 0.999 * x_N, 1e-3
    weight_OI = torch.zeros(1, 32)
    weight_OI[0, :3] = torch.tensor([0.26, 0.26, 1.0])
    whole_OI, steps_OG = round_by_data(weight_OI, x_NI.T @ x_NI)
    ours = weights_of(whole_OI, steps_OG)
    plain = (weight_OI / steps_OG).round() * steps_OG
    lost = (ours[0, 0] + ours[0, 1] - 0.52).abs()
    assert lost <= steps_OG.abs().item() / 2 + 1e-6
    assert lost <= (plain[0, 0] + plain[0, 1] - 0.52).abs()


def test_nothing_to_go_by_is_plain_rounding_with_the_best_steps() -> None:
    weight_OI, _ = draw(8, 40)
    whole_OI, steps_OG = round_by_data(weight_OI, torch.zeros(40, 40))
    nearest = (weight_OI / steps_OG.float().repeat_interleave(32, dim=1)[:, :40]).round().clamp(LEAST, MOST)
    assert torch.equal(whole_OI.float(), nearest)
    plain = weights_of(*round_nearest(weight_OI)) - weight_OI
    assert (weights_of(whole_OI, steps_OG) - weight_OI).norm() <= plain.norm()


def test_nothing_stays_nothing() -> None:
    for whole_OI, steps_OG in (round_nearest(torch.zeros(2, 33)), round_by_data(torch.zeros(2, 33), torch.eye(33))):
        assert not weights_of(whole_OI, steps_OG).any()
