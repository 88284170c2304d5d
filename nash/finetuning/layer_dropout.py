"""Structured dropout of decoder layers (LayerDrop, arXiv 1909.11556): a dense model that tolerates the loss of layers.

Pruning leaves a few decoder layers to do the work of all. A model whose layers were trained in changing combinations
needs less training after pruning. At inference all layers run.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from nash import ranks
from nash.modeling.layers import layers_of
from nash.training.objective import Autocast, Batch, Loss, TaskObjective, Update


class LayerDropoutObjective(TaskObjective):
    """The task's loss; each decoder layer but the first is left out of a micro-batch with probability `rate`.

    The first layer stays: pruning to evenly spread layers always keeps it, and it holds T5's table of positions.
    """

    def __init__(self, model: PreTrainedModel, rate: float, *, label_smoothing: float = 0.0) -> None:
        super().__init__(model, label_smoothing=label_smoothing)
        self.rate = rate

    def loss(self, batch: Batch, update: Update, autocast: Autocast) -> Loss:
        """The loss with the layers drawn for this micro-batch; validation runs all layers."""
        with only_layers(self.module, draw(len(layers_of(self.module, "decoder")), self.rate)):
            return super().loss(batch, update, autocast)


def draw(total: int, rate: float) -> tuple[int, ...]:
    """The layers that stay, ascending: the first, and each other with probability 1 - `rate`.

    Drawn from torch's global generator, whose state the checkpoints keep; the same in all processes of a run.
    """
    [drawn] = ranks.of_first([torch.rand(total - 1)])
    return (0, *(i for i, left_out in enumerate((drawn < rate).tolist(), 1) if not left_out))


@contextmanager
def only_layers(model: PreTrainedModel, kept: tuple[int, ...]) -> Iterator[None]:
    """Within the block, the model's decoder runs only the layers `kept`, which include the first, for training.

    Left-out layers cost nothing and get no gradient: the optimizer skips them.
    """
    decoder, layers = model.get_decoder(), layers_of(model, "decoder")
    (name,) = (name for name, child in decoder.named_children() if child is layers)
    setattr(decoder, name, nn.ModuleList(layers[i] for i in kept))
    try:
        yield
    finally:
        setattr(decoder, name, layers)
