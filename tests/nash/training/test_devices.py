"""A training step away from the CPU: every tensor is where it trains, and the host never waits for one.

No GPU is needed: tensors on the device "meta" have no values, so whatever would read one fails. The test marked `gpu`
asks CUDA itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model_store.model.model import Model
from model_store.model.spec import shortened
from nash.data.examples import Collator
from nash.modeling.folders import load_dense
from nash.pruning.distillation import DistillationMaps
from nash.pruning.objective import StudentObjective
from nash.pruning.student import Student
from nash.recipes.layer_selection import block_ends
from nash.recipes.recipe import OptimizationRecipe, PruningRecipe
from nash.structure.compaction import shorten_decoder
from nash.structure.masking import GateKinds, Gates
from nash.training.objective import Objective, TaskObjective, decoder_inputs, whole_masks
from nash.training.phase import Phase
from tests.nash.pruned_families import FAMILIES, build
from tests.nash.tiny_training import ALL_LOSSES, task_pairs

KEPT = (0,)
PRUNING = PruningRecipe(encoder_sparsity=0.5, gate_sublayers=True)


class OnDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where an operation reads or makes a tensor elsewhere; single numbers are those of the optimizer's steps."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor) and each.ndim]
        assert all(each.device.type == self.device for each in tensors), f"{func} on {[t.device for t in tensors]}"
        self.operations += 1
        return result


def pruning_objective(directory: Path) -> Objective:
    """Every loss that there is: task, predictions, hidden states with matching, gates."""
    teacher, spec = load_dense(Model.open(directory)), Model.open(directory).spec
    gates = Gates(shortened(spec, KEPT), GateKinds(sublayers=True))
    student = Student(shorten_decoder(teacher, KEPT), DistillationMaps(spec.d_model, len(KEPT)), gates)
    ends = block_ends(KEPT, spec.dense_decoder_layers)
    return StudentObjective(student, teacher, ALL_LOSSES, block_ends=ends, pruning=PRUNING, label_smoothing=0.1)


def phase_on(device: str, directory: Path, objective: Objective, **optimization: Any) -> Phase:
    pairs, spec = task_pairs(directory, 8), Model.open(directory).spec
    pairs.targets = [[*tokens, spec.eos_id] for tokens in pairs.targets]  # the tokenizer is T5's
    settings: dict[str, Any] = {"precision": "float32", "batch_size": 4, "gradient_accumulation": 2} | optimization
    return Phase(
        objective,
        pairs,
        OptimizationRecipe(**settings),
        spec=spec,
        folder=directory / "out",
        seed=0,
        device=device,
    )


@pytest.mark.parametrize(
    ("family", "checkpointing"), [("t5 v1.1", True), ("umt5", False), ("bart", True), ("m2m_100", False)]
)
def test_a_pruning_step_stays_on_its_device(family: str, checkpointing: bool, tmp_path: Path) -> None:
    directory = build(FAMILIES[family], tmp_path / "m")
    objective = pruning_objective(directory)
    settings: dict[str, Any] = {"gradient_checkpointing": checkpointing, "gradient_accumulation": 1}
    assert_steps_stay(phase_on("meta", directory, objective, **settings), 1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_fine_tuning_step_stays_on_its_device(optimizer: str, tmp_path: Path) -> None:
    directory = build(FAMILIES["t5"], tmp_path / "m")
    objective = TaskObjective(load_dense(Model.open(directory)))
    assert_steps_stay(phase_on("meta", directory, objective, optimizer=optimizer), 2)  # the second has moments


def assert_steps_stay(phase: Phase, steps: int) -> None:
    batches = next(phase._updates(0))
    with OnDevice("meta") as watched:
        for _ in range(steps):
            phase.update(batches)
    assert watched.operations > 500
    assert phase.state.step == steps
    parameters = phase._parameters()
    assert {parameter.device.type for parameter in parameters} == {"meta"}
    assert len(phase.optimizer.state) > 0.9 * len(parameters), "they have gradients"
    assert len(phase._unchecked) == steps * len(batches), "losses are looked at later"


@pytest.mark.parametrize("family", ["t5", "umt5", "bart", "m2m_100"])
@torch.no_grad()
def test_masks_off_the_cpu_are_those_of_the_model(family: str, tmp_path: Path) -> None:
    directory = build(FAMILIES[family], tmp_path / "m")
    model = load_dense(Model.open(directory)).eval()
    pairs = task_pairs(directory, 6)
    batch = Collator(pad_id=Model.open(directory).spec.pad_id)([pairs[i] for i in range(6)])
    inputs = decoder_inputs(model.config, batch)
    expected = model(**inputs).logits
    found = model(**inputs | whole_masks(model.config, batch)).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not batch["attention_mask"].all(), "nothing is padding"


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cuda_finds_no_wait_in_a_pruning_step(precision: str, tmp_path: Path) -> None:
    directory = build(FAMILIES["t5"], tmp_path / "m")
    phase = phase_on("cuda", directory, pruning_objective(directory), precision=precision)
    batches = next(phase._updates(0))
    phase.update(batches)
    with no_waiting():
        phase.update(batches)
    phase._check_losses()
