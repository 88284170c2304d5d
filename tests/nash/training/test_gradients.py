"""What each part of a loss does to the gradient, and that accumulation does nothing to it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import set_seed

from nash import precision
from nash.pruning.student import Student
from nash.recipes.recipe import DistillationRecipe, PruningRecipe
from nash.structure.masking import Gates
from nash.training.phase import Phase, Watcher
from tests.nash.tiny_training import build_task_model, finetune_phase, student_phase

NO_CLIPPING = 1e9
PRUNING = PruningRecipe(encoder_sparsity=0.5, sparsity_warmup=0.0, gate_learning_rate=0.02)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_task_model(tmp_path_factory.mktemp("model") / "m", dropout=0.0)


class Watch(Watcher):
    """Keeps, before every update, the gradients that the optimizer is about to use and the rates of its groups."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.rates: list[list[float]] = []

    def before_update(self, phase: Phase) -> None:
        named = phase.objective.module.named_parameters()
        self.gradients.append({short(n): p.grad.clone() for n, p in named if p.grad is not None})
        self.rates.append([group["lr"] for group in phase.optimizer.param_groups])


def short(name: str) -> str:
    """A student's weights by the names that they have in its model."""
    return name.removeprefix("model.")


def gates_of(phase: Phase) -> Gates:
    assert isinstance(phase.objective.module, Student)
    assert phase.objective.module.gates is not None
    return phase.objective.module.gates


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        size = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * size + 1e-9, msg=name)


@pytest.mark.parametrize("build", [finetune_phase, student_phase])
def test_accumulation_changes_nothing(build: Any, model_dir: Path, tmp_path: Path) -> None:
    """One batch of eight, and four micro-batches of two, whose numbers of tokens differ."""
    watches = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        watches.append(watch := Watch())
        build(
            model_dir,
            tmp_path / str(accumulation),
            watch,
            batch_size=batch_size,
            gradient_accumulation=accumulation,
            max_steps=1,
            max_grad_norm=NO_CLIPPING,
        ).run()
    whole, parts = (watch.gradients[0] for watch in watches)
    assert_same_gradients(parts, whole)
    assert any(name.startswith("encoder") for name in whole)
    assert (build is student_phase) == any(name.startswith("maps") for name in whole)


def gradient(phase: Phase) -> dict[str, Tensor]:
    """Of the loss of one batch, with the same gates drawn every time."""
    set_seed(1)
    batch = phase.collate([phase.pairs[i] for i in range(8)])
    loss = phase.objective.loss(batch, phase.update_of([batch]), phase.autocast).total
    named = [(n, p) for n, p in phase.objective.module.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return {short(name): g for (name, _), g in zip(named, found, strict=True) if g is not None}


def with_losses(model_dir: Path, out: Path, **weights: float) -> Phase:
    off = dict.fromkeys(("task_weight", "prediction_weight", "encoder_hidden_weight", "decoder_hidden_weight"), 0.0)
    phase = student_phase(model_dir, out, distill=DistillationRecipe.model_validate(off | weights), pruning=PRUNING)
    with torch.no_grad():
        gates_of(phase).multipliers_2.copy_(torch.tensor([1.0, 2.0]))
    return phase


LOSSES = {"task_weight": 1.0, "prediction_weight": 0.5, "encoder_hidden_weight": 0.7, "decoder_hidden_weight": 0.3}
# What the gradient of each loss reaches, and what it must not.
REACHES = {
    "task_weight": ({"encoder", "decoder", "gates"}, {"maps"}),
    "prediction_weight": ({"encoder", "decoder", "gates"}, {"maps"}),
    "encoder_hidden_weight": ({"encoder", "gates", "maps"}, {"decoder"}),
    "decoder_hidden_weight": ({"encoder", "decoder", "gates", "maps"}, set()),
}


def test_every_loss_has_its_part_in_the_gradient(model_dir: Path, tmp_path: Path) -> None:
    """The parts add up, so switching one off takes away exactly its own."""
    whole = gradient(with_losses(model_dir, tmp_path, **LOSSES))
    sparsity_alone = gradient(with_losses(model_dir, tmp_path))
    assert set(sparsity_alone) == {n for n in whole if n.startswith("gates")}
    assert all(g.any() for g in sparsity_alone.values())
    total = {name: sparsity_alone.get(name, torch.zeros_like(g)).clone() for name, g in whole.items()}
    for name, weight in LOSSES.items():
        alone = gradient(with_losses(model_dir, tmp_path, **{name: weight}))
        added = {n: g - sparsity_alone[n] if n in sparsity_alone else g for n, g in alone.items()}
        moved = {n.split(".")[0] for n, g in added.items() if g.abs().max() > 1e-7}
        reached, spared = REACHES[name]
        assert reached <= moved, name
        assert not spared & moved, name
        for n, g in added.items():
            total[n] += g
    assert_same_gradients(total, whole)


def test_multipliers_and_gates_pull_apart(model_dir: Path, tmp_path: Path) -> None:
    """Below the target, ascending multipliers come to push the gates shut, and the gates follow down to the target."""
    phase = with_losses(model_dir, tmp_path)
    found = gradient(phase)
    gates = gates_of(phase)
    gap = gates.sparsity().item() - PRUNING.encoder_sparsity
    assert gap < 0
    torch.testing.assert_close(found["gates.multipliers_2"], torch.tensor([gap, gap**2]))

    pruning = PruningRecipe(
        encoder_sparsity=0.5, sparsity_warmup=0.5, gate_learning_rate=0.2, multiplier_learning_rate=0.2
    )
    phase = student_phase(
        model_dir, tmp_path, distill=DistillationRecipe(), pruning=pruning, batch_size=4, max_steps=48, rows=8
    )
    phase.run()
    assert gates_of(phase).sparsity().item() > 0.3
    linear, quadratic = gates_of(phase).multipliers_2.tolist()
    assert linear < 0 < quadratic


def test_clipping_spares_gates_and_maps(model_dir: Path, tmp_path: Path) -> None:
    clipped, free = Watch(), Watch()
    for watch, most in ((clipped, 1e-3), (free, NO_CLIPPING)):
        out = tmp_path / str(most)
        phase = student_phase(model_dir, out, watch, pruning=PRUNING, batch_size=4, max_steps=1, max_grad_norm=most)
        phase.run()
    [small], [large] = clipped.gradients, free.gradients
    spared = {name for name in large if name.startswith(("gates", "maps"))}
    # Three layers of heads, three of units, the multipliers; the encoder's map and one of each decoder layer.
    assert len(spared) == 7 + 1 + len([name for name in large if name.startswith("maps.decoder")])
    assert_same_gradients({n: small[n] for n in spared}, {n: large[n] for n in spared})
    norm = torch.stack([g.norm() for n, g in small.items() if n not in spared]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "expected"),
    [
        ("linear", 0, [0.1, 0.075, 0.05, 0.025]),
        ("linear", 2, [0.0, 0.05, 0.1, 0.05]),
        ("constant", 0, [0.1, 0.1, 0.1, 0.1]),
        ("constant", 2, [0.0, 0.05, 0.1, 0.1]),
    ],
)
def test_rates(model_dir: Path, tmp_path: Path, schedule: str, warmup_steps: int, expected: list[float]) -> None:
    """Weights follow the schedule; maps, gates and multipliers keep their rate from the first step to the last."""
    watch = Watch()
    phase = student_phase(
        model_dir,
        tmp_path,
        watch,
        pruning=PRUNING,
        batch_size=4,
        max_steps=4,
        learning_rate=0.1,
        schedule=schedule,
        warmup_steps=warmup_steps,
    )
    phase.run()
    matrices, rest, maps, alphas, multipliers = zip(*watch.rates, strict=True)
    assert list(matrices) == list(rest) == pytest.approx(expected)
    assert maps == (0.1,) * 4
    assert alphas == (0.02,) * 4
    assert multipliers == (PRUNING.multiplier_learning_rate,) * 4


def test_bfloat16_trains_under_every_loss(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bfloat16_obstacle", lambda device: None)  # imitated: right, if slow
    watch = Watch()
    phase = student_phase(model_dir, tmp_path, watch, pruning=PRUNING, batch_size=4, max_steps=1, precision="bfloat16")
    phase.run()
    assert all(bool(g.isfinite().all()) for g in watch.gradients[0].values())
    assert all(bool(g.any()) for name, g in watch.gradients[0].items() if not name.startswith("gates"))
