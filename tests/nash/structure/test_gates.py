"""The mathematics of hard concrete gates, against its definition and against frequencies."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nash.structure import gates

ALPHAS = st.floats(-20, 20)
PROPER_ALPHAS = st.floats(-gates.MAX_ALPHA, gates.MAX_ALPHA)
NOISE = st.floats(0, 1)


def sampled(alpha: float, noise: float) -> float:
    return float(gates.sample(torch.tensor(alpha), torch.tensor(noise)))


@given(alpha=ALPHAS, noise=NOISE)
def test_a_sample_lies_in_the_unit_interval(alpha: float, noise: float) -> None:
    assert 0 <= sampled(alpha, noise) <= 1


@given(noise=NOISE)
def test_limits(noise: float) -> None:
    """Beyond what the clipped noise can undo, a gate is exactly open or exactly closed."""
    assert sampled(17.0, noise) == 1
    assert sampled(-17.0, noise) == 0


@given(noise=st.floats(0.01, 0.99), alphas=st.tuples(PROPER_ALPHAS, PROPER_ALPHAS))
def test_a_sample_rises_with_alpha(noise: float, alphas: tuple[float, float]) -> None:
    low, high = sorted(alphas)
    assert sampled(low, noise) <= sampled(high, noise)


def test_a_sample_by_hand() -> None:
    """z = clip(1.2 sigmoid((logit(u) + alpha) / beta) - 0.1), at u = 0.7 and alpha = -0.5."""
    s = 1 / (1 + math.exp(-(math.log(0.7 / 0.3) - 0.5) * 3 / 2))
    assert sampled(-0.5, 0.7) == pytest.approx(1.2 * s - 0.1, abs=1e-6)


def test_the_gradient_of_a_sample_passes_through() -> None:
    alpha = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: gates.sample(a, torch.tensor(0.4, dtype=torch.float64)), (alpha,))


@pytest.mark.parametrize("alpha", [-4.0, -1.0, 0.0, 0.7, 3.0])
def test_the_open_probability_is_the_frequency(alpha: float) -> None:
    draws = 200_000
    generator = torch.Generator().manual_seed(5)
    opened = gates.sample(torch.full((draws,), alpha), torch.rand(draws, generator=generator)) > 0
    p = float(gates.open_probability(torch.tensor(alpha)))
    assert 0.05 < p < 0.999 or alpha == -4.0
    assert float(opened.float().mean()) == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / draws))


def test_the_open_probability_in_closed_form() -> None:
    assert float(gates.open_probability(torch.tensor(0.0))) == pytest.approx(1 / (1 + 11 ** (-2 / 3)))
    at_the_clamp = float(gates.open_probability(torch.tensor(-gates.MAX_ALPHA)))
    assert at_the_clamp == pytest.approx(0.047, abs=1e-3)


@pytest.mark.parametrize(
    ("alpha", "value"),
    [(0.0, 0.5), (math.log(11) + 0.01, 1.0), (-math.log(11) - 0.01, 0.0), (1.0, 1.2 / (1 + math.exp(-1)) - 0.1)],
)
def test_the_deterministic_value(alpha: float, value: float) -> None:
    assert float(gates.deterministic(torch.tensor(alpha))) == pytest.approx(value, abs=1e-6)


def test_the_lagrangian() -> None:
    multipliers = torch.tensor([2.0, 3.0], requires_grad=True)
    sparsity = torch.tensor(0.1, requires_grad=True)
    value = gates.lagrangian(sparsity, 0.3, multipliers)
    assert value.item() == pytest.approx(2 * -0.2 + 3 * 0.04)
    by_sparsity, by_multipliers = torch.autograd.grad(value, (sparsity, multipliers))
    assert by_multipliers.tolist() == pytest.approx([-0.2, 0.04])
    assert by_sparsity.item() == pytest.approx(2 + 6 * -0.2)


def test_the_schedule_rises_linearly_to_the_target() -> None:
    assert [gates.scheduled_target(0.4, step, 4) for step in range(7)] == pytest.approx(
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4]
    )
    assert gates.scheduled_target(0.4, 0, 0) == 0.4


@st.composite
def gate_sets(draw: st.DrawFn) -> tuple[list[torch.Tensor], list[float]]:
    """Alphas of up to six groups, with ties, and the weights that one gate of each group holds."""
    groups = draw(
        st.lists(st.tuples(st.lists(st.integers(-4, 4), min_size=1, max_size=8), st.integers(1, 9)), max_size=6)
    )
    groups = groups or [([0, 1], 1)]
    return [torch.tensor(alphas, dtype=torch.float32) for alphas, _ in groups], [float(w) for _, w in groups]


def realised(kept: list[torch.Tensor], weights: list[float]) -> float:
    closed = sum(int((~k).sum()) * w for k, w in zip(kept, weights, strict=True))
    return closed / sum(k.numel() * w for k, w in zip(kept, weights, strict=True))


@settings(deadline=None)
@given(gate_set=gate_sets(), target=st.floats(0, 0.99))
def test_hardening_meets_the_target_within_one_gate(
    gate_set: tuple[list[torch.Tensor], list[float]], target: float
) -> None:
    alphas, weights = gate_set
    kept = gates.harden(alphas, weights, target)
    total = sum(a.numel() * w for a, w in zip(alphas, weights, strict=True))
    assert [k.shape for k in kept] == [a.shape for a in alphas]
    assert abs(realised(kept, weights) - target) * total <= max(weights) / 2 + 1e-6


@settings(deadline=None)
@given(gate_set=gate_sets(), target=st.floats(0, 0.99))
def test_hardening_closes_the_least_probable(gate_set: tuple[list[torch.Tensor], list[float]], target: float) -> None:
    alphas, weights = gate_set
    kept = gates.harden(alphas, weights, target)
    closed = [float(a) for alpha, k in zip(alphas, kept, strict=True) for a in alpha[~k]]
    opened = [float(a) for alpha, k in zip(alphas, kept, strict=True) for a in alpha[k]]
    assert not closed or not opened or max(closed) <= min(opened)


@settings(deadline=None)
@given(gate_set=gate_sets(), targets=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)))
def test_a_higher_target_closes_more(
    gate_set: tuple[list[torch.Tensor], list[float]], targets: tuple[float, float]
) -> None:
    alphas, weights = gate_set
    fewer, more = (gates.harden(alphas, weights, target) for target in sorted(targets))
    assert all(bool((k_more <= k_fewer).all()) for k_fewer, k_more in zip(fewer, more, strict=True))


def test_hardening_by_hand() -> None:
    """Weights 4, 1: closing -3 (1), -2 (4), then 0 (1) gives 1, 5, 6 of 11; ties go to the one listed first."""
    alphas, weights = [torch.tensor([-2.0, 5.0]), torch.tensor([0.0, -3.0, 5.0])], [4.0, 1.0]
    kept = gates.harden(alphas, weights, 5.4 / 11)
    assert [k.tolist() for k in kept] == [[False, True], [True, False, True]]
    kept = gates.harden([torch.zeros(4)], [1.0], 0.5)
    assert kept[0].tolist() == [False, False, True, True]
    assert gates.harden([torch.zeros(4)], [1.0], 0.0)[0].all()
