"""What calibration data decide: layers that are dropped, matrices that are refitted."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from model_store.model.config import layout_of
from model_store.model.model import Model
from model_store.model.spec import shortened
from nash.data.examples import IGNORED
from nash.modeling.folders import load_dense
from nash.structure import calibration
from nash.structure.calibration import ROWS, TeacherDistance, calibration_batches, closest_layers, repair
from nash.structure.compaction import compact, shorten_decoder
from nash.structure.masking import GateKinds, Gates, HardenedGates, Mask, masked
from nash.training.objective import decoder_inputs
from tests.nash.pruned_families import FAMILIES, build
from tests.nash.tiny_training import KEPT_LAYERS, build_task_model, task_pairs

BOTH = GateKinds(stacks="both")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_task_model(tmp_path_factory.mktemp("calibration") / "model", dropout=0.1)


@pytest.fixture(scope="module")
def batches(model_dir: Path) -> list[dict[str, Tensor]]:
    return calibration_batches(task_pairs(model_dir, 200), pad_id=0, seed=0)


def test_batches_are_a_seeded_draw(model_dir: Path) -> None:
    pairs = task_pairs(model_dir, 3 * ROWS)
    first, again, other = (calibration_batches(pairs, pad_id=0, seed=seed) for seed in (0, 0, 1))
    assert sum(len(batch["labels"]) for batch in first) == ROWS
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))
    assert any(
        a["input_ids"].shape != b["input_ids"].shape or not torch.equal(a["input_ids"], b["input_ids"])
        for a, b in zip(first, other, strict=True)
    )


def test_long_texts_are_fewer(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = task_pairs(model_dir, 60)
    for most, rows in ((100, range(7, 30)), (1, range(1, 2))):
        monkeypatch.setattr(calibration, "MOST_TOKENS", most)
        batches = calibration_batches(pairs, pad_id=0, seed=0)
        assert sum(len(batch["labels"]) for batch in batches) in rows


@pytest.mark.parametrize("idle", [0, 1, 2])
def test_a_layer_that_does_nothing_is_the_one_to_drop(
    model_dir: Path, batches: list[dict[str, Tensor]], idle: int
) -> None:
    teacher = load_dense(Model.open(model_dir))
    with torch.no_grad():
        for sublayer in layout_of(Model.open(model_dir).spec).sublayers("decoder"):
            out = teacher.get_submodule(sublayer.out)
            out.weight.mul_(0.0 if sublayer.layer == idle else 3.0)
    others = tuple(i for i in range(3) if i != idle)
    assert closest_layers(teacher, 2, TeacherDistance(teacher, batches)) == others


@pytest.mark.parametrize("name", FAMILIES)
def test_a_choice_that_changes_nothing_costs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every family's scores are what its output matrix makes of the decoder's states."""
    build(FAMILIES[name], tmp_path)
    teacher = load_dense(Model.open(tmp_path))
    size = getattr(teacher.config, "decoder_vocab_size", None) or teacher.config.vocab_size
    pairs = torch.arange(4, 10) % size
    batch = {"input_ids": pairs[None], "attention_mask": torch.ones(1, 6, dtype=torch.long), "labels": pairs[None]}
    costs: list[float] = []

    def search(layers: int, keep: int, cost: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
        costs.extend([cost(tuple(range(layers))), cost((0,))])
        return (0,)

    monkeypatch.setattr(calibration, "search_layers", search)
    closest_layers(teacher, 1, TeacherDistance(teacher, [batch]))
    assert costs[0] == pytest.approx(0.0, abs=1e-6)
    assert costs[1] > 1e-4


def outputs(model: PreTrainedModel, batches: list[dict[str, Tensor]]) -> Tensor:
    with torch.no_grad():
        model.eval()
        logits = [model(**decoder_inputs(model.config, batch)).logits[batch["labels"] != IGNORED] for batch in batches]
    return torch.cat(logits)


def cut(model_dir: Path, target: float, kinds: GateKinds) -> tuple[PreTrainedModel, Mask, HardenedGates]:
    """A student whose gates have settled somewhere in between, and the decision that is made of it."""
    spec = shortened(Model.open(model_dir).spec, KEPT_LAYERS)
    student = shorten_decoder(load_dense(Model.open(model_dir)), KEPT_LAYERS)
    own = Gates(spec, kinds)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for alpha in own.alphas():
            alpha.copy_(2 * torch.randn(alpha.shape, generator=generator))
    return student, {name: value.detach() for name, value in own.expected().items()}, own.harden(target)


@pytest.mark.parametrize("kinds", [GateKinds(), BOTH], ids=["encoder", "both stacks"])
def test_a_repaired_model_is_nearer_to_the_student_before_the_cut(
    model_dir: Path, batches: list[dict[str, Tensor]], kinds: GateKinds
) -> None:
    dense = Model.open(model_dir).spec
    student, soft, hardened = cut(model_dir, 0.5, kinds)
    parts = layout_of(shortened(dense, KEPT_LAYERS)).sublayers()
    unseen = calibration_batches(task_pairs(model_dir, 150), pad_id=0, seed=5)
    with masked(student, parts, soft):
        wanted = [outputs(student, data) for data in (batches, unseen)]
    compacted = compact(student, dense, KEPT_LAYERS, hardened)

    def errors() -> list[float]:
        found = [outputs(compacted, data) for data in (batches, unseen)]
        return [float((f - w).norm()) for f, w in zip(found, wanted, strict=True)]

    before = errors()
    repair(compacted, student, parts, soft, batches)
    after = errors()
    assert after[0] < 0.8 * before[0]
    assert after[1] < 0.9 * before[1]


def test_what_can_be_made_up_for_is(model_dir: Path, batches: list[dict[str, Tensor]]) -> None:
    """Every unit exists twice and one of each pair is cut: the other can give all that both gave."""
    dense = Model.open(model_dir).spec
    student = shorten_decoder(load_dense(Model.open(model_dir)), KEPT_LAYERS)
    parts = layout_of(shortened(dense, KEPT_LAYERS)).sublayers()
    kept = {}
    with torch.no_grad():
        for sublayer in layout_of(shortened(dense, KEPT_LAYERS)).sublayers("encoder"):
            if not sublayer.has_heads:
                half = sublayer.parts // 2
                (into,) = (student.get_submodule(name) for name in sublayer.inputs)
                into.weight[half:] = into.weight[:half]
                kept[sublayer.out] = torch.arange(sublayer.parts) < half
    whole = {name: torch.ones(len(bits)) for name, bits in kept.items()}
    wanted = outputs(student, batches)
    compacted = compact(student, dense, KEPT_LAYERS, HardenedGates(values=whole, kept=kept))
    before = (outputs(compacted, batches) - wanted).norm()
    repair(compacted, student, parts, whole, batches)
    assert (outputs(compacted, batches) - wanted).norm() < 0.05 * before


def test_a_sublayer_of_which_nothing_is_left_is_passed_over(model_dir: Path, batches: list[dict[str, Tensor]]) -> None:
    dense = Model.open(model_dir).spec
    student, soft, hardened = cut(model_dir, 0.5, GateKinds())
    gone = next(iter(hardened.kept))
    kept = {name: torch.zeros_like(bits) if name == gone else bits for name, bits in hardened.kept.items()}
    compacted = compact(student, dense, KEPT_LAYERS, HardenedGates(values=hardened.values, kept=kept))
    repair(compacted, student, layout_of(shortened(dense, KEPT_LAYERS)).sublayers(), soft, batches)
    assert outputs(compacted, batches).isfinite().all()
