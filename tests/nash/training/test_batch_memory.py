"""Less memory for the same steps, and what is said where there is too little."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from nash.errors import NashError
from nash.recipes.recipe import PruningRecipe
from nash.training.objective import Batch, Loss, TaskObjective, Update
from nash.training.phase import Phase
from tests.nash.tiny_training import build_task_model, finetune_phase, student_phase

PRUNING = PruningRecipe(encoder_sparsity=0.5, gate_sublayers=True)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_task_model(tmp_path_factory.mktemp("model") / "m", dropout=0.1)


def kept_and_gradients(phase: Phase) -> tuple[int, dict[str, Tensor]]:
    """Bytes that the forward pass of a batch keeps for the backward pass, and the gradients."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    phase.objective.module.train()
    batch = phase.collate([phase.pairs[i] for i in range(8)])
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = phase.objective.loss(batch, phase.update_of([batch]), phase.autocast).total
    torch.autograd.backward(loss)
    named = phase.objective.module.named_parameters()
    return sum(sizes.values()), {name: p.grad for name, p in named if p.grad is not None}


@pytest.mark.parametrize("build", [finetune_phase, student_phase])
def test_checkpointed_layers_keep_less_and_have_the_same_gradients(build: Any, model_dir: Path, tmp_path: Path) -> None:
    """Dropout and gates are drawn once: the layers are computed again under the same ones."""
    settings: dict[str, Any] = {} if build is finetune_phase else {"pruning": PRUNING}
    kept, gradients = kept_and_gradients(build(model_dir, tmp_path, **settings))
    less, again = kept_and_gradients(build(model_dir, tmp_path, gradient_checkpointing=True, **settings))
    assert less < 0.6 * kept
    assert again.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


class OnlySo(TaskObjective):
    """A model of which only so many rows fit into memory."""

    def __init__(self, model: PreTrainedModel, most: int) -> None:
        super().__init__(model)
        self.most = most

    def loss(self, batch: Batch, update: Update, autocast: Any) -> Loss:
        if len(batch["labels"]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().loss(batch, update, autocast)


@pytest.mark.parametrize(
    ("most", "said"),
    [
        (
            5,
            "batch_size 12 needs more than the memory of cpu: batch_size 4 with gradient_accumulation 6 takes the ",
        ),
        (
            0,
            "not even one row at a time fits into the memory of cpu: set gradient_checkpointing = true or ",
        ),
    ],
)
def test_the_batch_that_fits_is_named(most: int, said: str, model_dir: Path, tmp_path: Path) -> None:
    phase = finetune_phase(model_dir, tmp_path, batch_size=12, gradient_accumulation=2, rows=24)
    phase.objective = OnlySo(phase.objective.module, most)
    with pytest.raises(NashError) as error:
        phase.run()
    assert str(error.value).startswith(said)
    assert phase.state.step == 0
    assert all(parameter.grad is None for parameter in phase.objective.module.parameters())
