"""Muon with AdamW: its mathematics, its parameter groups, and that it goes on from a saved state."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_store.model.model import Model
from nash.modeling.folders import load_dense
from nash.training.optimizer import MuonAdamW, orthogonalize, parameter_groups
from tests.tiny_models import build_tiny_t5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6), (2, 3, 16, 5)])
def test_orthogonalize(shape: tuple[int, ...]) -> None:
    """Singular values come near 1 from any size, singular vectors stay."""
    matrices = normal(*shape) * 1e-3
    result = orthogonalize(matrices)
    assert result.shape == matrices.shape
    assert result.dtype == matrices.dtype
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    rotated = left.mT @ result @ right.mT
    near_one = rotated.diagonal(dim1=-2, dim2=-1)
    certain = values > 0.02 * values.amax(dim=-1, keepdim=True)  # five iterations lift no more than this
    assert bool(((near_one > 0.6) & (near_one < 1.3))[certain].all())
    torch.testing.assert_close(rotated, torch.diag_embed(near_one), atol=1e-3, rtol=0)


def test_orthogonalize_lifts_small_singular_values() -> None:
    lifted = orthogonalize(torch.diag(torch.tensor([1.0, 0.3, 0.03, 0.004]))).diagonal()
    assert bool(((lifted > 0.6) & (lifted < 1.3)).all()), lifted


def test_orthogonalize_of_nothing_is_nothing() -> None:
    assert not orthogonalize(torch.zeros(3, 4)).any()


def run(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int, seed: int = 0) -> None:
    for step in range(steps):
        for i, parameter in enumerate(parameters):
            parameter.grad = normal(*parameter.shape, seed=seed + 100 * step + i)
        optimizer.step()


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(normal(*shape, seed=7 + i)) for i, shape in enumerate(shapes)]


def test_groups_without_muon_are_torchs_adamw() -> None:
    ours, theirs = parameters((4, 3), (5,), (2,)), parameters((4, 3), (5,), (2,))

    def groups(own: list[nn.Parameter]) -> list[dict[str, Any]]:
        return [
            {"params": own[:1], "weight_decay": 0.1},
            {"params": own[1:2], "lr": 0.5},
            {"params": own[2:], "maximize": True},
        ]

    run(MuonAdamW(groups(ours), lr=1e-2), ours, 5)
    run(torch.optim.AdamW(groups(theirs), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0), theirs, 5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_group_that_maximises_ascends() -> None:
    [parameter] = parameters((2,))
    before = parameter.detach().clone()
    optimizer = MuonAdamW([{"params": [parameter], "maximize": True}], lr=0.1)
    parameter.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    torch.testing.assert_close(parameter.detach() - before, torch.tensor([0.1, -0.1]))


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (48, 48)])
def test_muons_step_is_as_long_as_adamws(shape: tuple[int, int]) -> None:
    """The root mean square of an update is 0.2 times the learning rate, whatever the gradient's size."""
    for scale in (1e-4, 1e3):
        parameter = nn.Parameter(torch.zeros(shape))
        optimizer = MuonAdamW([{"params": [parameter], "muon": True}], lr=0.5)
        parameter.grad = normal(*shape) * scale
        optimizer.step()
        length = float(parameter.detach().square().mean().sqrt()) / 0.5
        assert length == pytest.approx(0.2, rel=0.25)


def test_muon_decays_decoupled_from_the_gradient() -> None:
    [parameter] = parameters((4, 4))
    before = parameter.detach().clone()
    optimizer = MuonAdamW([{"params": [parameter], "muon": True, "weight_decay": 0.5}], lr=0.1)
    parameter.grad = torch.zeros(4, 4)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), before * 0.95)


def test_a_parameter_without_a_gradient_stays() -> None:
    moved, still = parameters((4, 4), (4, 4))
    before = still.detach().clone()
    optimizer = MuonAdamW([{"params": [moved, still], "muon": True, "weight_decay": 0.5}], lr=0.1)
    run(optimizer, [moved], 2)
    torch.testing.assert_close(still.detach(), before, rtol=0, atol=0)


def test_a_saved_state_goes_on_identically() -> None:
    def build(own: list[nn.Parameter]) -> MuonAdamW:
        return MuonAdamW([{"params": own[:2], "muon": True}, {"params": own[2:]}], lr=0.01)

    own = parameters((4, 6), (6, 4), (5,))
    optimizer = build(own)
    run(optimizer, own, 3)
    others = [nn.Parameter(p.detach().clone()) for p in own]
    restored = build(others)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, own, 3, seed=9)
    run(restored, others, 3, seed=9)
    for a, b in zip(own, others, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    forgetful = build(others)
    run(forgetful, others, 1)
    run(optimizer, own, 1)
    assert not any(torch.equal(a, b) for a, b in zip(own, others, strict=True)), "the state made no difference"


@pytest.mark.parametrize("muon", [True, False])
def test_a_quadratic_is_minimised(muon: bool) -> None:
    goal = normal(8, 12, seed=3)
    weight = nn.Parameter(torch.zeros(8, 12))
    optimizer = MuonAdamW([{"params": [weight], "muon": muon}], lr=0.2)
    losses = []
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 200)
        loss = (weight - goal).square().mean()
        [weight.grad] = torch.autograd.grad(loss, [weight])
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 1e-3 * losses[0]


def test_parameter_groups(tmp_path: Path) -> None:
    directory = build_tiny_t5(
        tmp_path / "m", d_model=16, heads=2, d_ff=8, encoder_layers=2, decoder_layers=1, tied=False
    )
    model = load_dense(Model.open(directory))
    names = {id(p): name for name, p in model.named_parameters()}
    frozen = model.encoder.block[0].layer[0].SelfAttention.q.weight.requires_grad_(False)
    matrices, rest = parameter_groups(model, optimizer="muon", weight_decay=0.1)
    assert (matrices["muon"], matrices["weight_decay"]) == (True, 0.1)
    assert (rest["muon"], rest["weight_decay"]) == (False, 0.0)
    in_rest = {names[id(p)] for p in rest["params"]}
    assert {"shared.weight", "lm_head.weight"} <= in_rest
    assert all("norm" in n or "relative_attention_bias" in n for n in in_rest - {"shared.weight", "lm_head.weight"})
    both = [id(p) for p in (*matrices["params"], *rest["params"])]
    assert len(both) == len(set(both))
    assert set(both) == names.keys() - {id(frozen)}


def test_adafactor_is_torchs_and_its_gates_are_adamws() -> None:
    ours, theirs = parameters((6, 4), (5,), (2,)), parameters((6, 4), (5,), (2,))
    groups: list[dict[str, Any]] = [
        {"params": ours[:2], "adafactor": True, "lr": 0.02, "weight_decay": 0.1},
        {"params": ours[2:], "lr": 0.1, "maximize": True, "constant_rate": True},
    ]
    optimizer = MuonAdamW(groups, lr=0.01)
    run(optimizer, ours, 5)
    run(torch.optim.Adafactor(theirs[:2], lr=0.02, weight_decay=0.1), theirs[:2], 5)
    for found, expected in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(found, expected)
    assert set(optimizer.state[ours[0]]) == {"step", "row_var", "col_var"}
    assert set(optimizer.state[ours[2]]) == {"step", "exp_avg", "exp_avg_sq"}
    up = parameters((6, 4), (5,), (2,))[2]
    run(torch.optim.AdamW([up], lr=0.1, betas=(0.9, 0.98), weight_decay=0.0, maximize=True), [up], 5, seed=2)
    assert torch.equal(ours[2], up)
