"""Structured dropout of decoder layers (LayerDrop, arXiv 1909.11556): a dense model that takes the loss of layers well.

Pruning leaves a few decoder layers to do the work of all. A model whose layers were trained beside ever other
companies of them needs less training afterwards to do so. At use all layers run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nash.modeling.layers import layers_of
from nash.training.phase import FinetuneTrainer


class LayerDropoutTrainer(FinetuneTrainer):
    """Fine-tunes with each decoder layer but the first left out of a micro-batch with probability `rate`.

    The first one stays: pruning to evenly spread layers always keeps it, and it holds T5's table of positions.
    """

    def __init__(self, *args: Any, rate: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rate = rate

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """The task's loss of the layers drawn for this micro-batch; validation is of all layers."""
        unwrapped: Any = getattr(model, "module", model)
        with only_layers(unwrapped, draw(len(layers_of(unwrapped, "decoder")), self.rate)):
            return super().compute_loss(model, inputs, *args, **kwargs)


def draw(total: int, rate: float) -> tuple[int, ...]:
    """The layers that stay, ascending: the first, and each other with probability 1 - `rate`.

    Drawn from torch's global generator, whose state the Trainer's checkpoints keep.
    """
    return (0, *(i for i, left_out in enumerate((torch.rand(total - 1) < rate).tolist(), 1) if not left_out))


@contextmanager
def only_layers(model: PreTrainedModel, kept: tuple[int, ...]) -> Iterator[None]:
    """Within the block the model's decoder runs the layers `kept` alone, the first among them, for training.

    Left-out layers cost nothing and get no gradient: the optimizer passes over them.
    """
    decoder, layers = model.get_decoder(), layers_of(model, "decoder")
    (name,) = (name for name, child in decoder.named_children() if child is layers)
    setattr(decoder, name, nn.ModuleList(layers[i] for i in kept))
    try:
        yield
    finally:
        setattr(decoder, name, layers)
