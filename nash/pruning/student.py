"""A student in training: the model, and the modules that it has only during training."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from model_store.model.config import layout_of, spec_of
from nash.modeling.layers import checkpoint_layers, layers_of
from nash.pruning import distillation
from nash.pruning.distillation import DistillationMaps
from nash.structure.masking import Gates, Mask, masked


@dataclass(frozen=True, kw_only=True)
class Computed:
    """A model's outputs for a batch: logits [B, T, V], and the outputs of its layers."""

    logits_BTV: Tensor
    encoder_BSD: Sequence[Tensor]
    decoder_BTD: Sequence[Tensor]


class Student(nn.Module):
    """A model with its gates and with the maps to its teacher's hidden states.

    All are submodules, so that checkpoints hold them; only the model is kept in the end.
    """

    def __init__(self, model: PreTrainedModel, maps: DistillationMaps, gates: Gates | None = None) -> None:
        """`gates` are those of the pruning phase; None if no gates are trained."""
        super().__init__()
        self.model = model
        self.maps = maps
        self.gates = gates
        self.sublayers = layout_of(spec_of(model.config.to_dict())).sublayers()
        self._mask: Mask = {}

    def forward(self, feed: dict[str, Any]) -> Computed:
        """Run the model on `decoder_inputs`, with sampled gates in training, else with the gates' noise-free values."""
        with ExitStack() as stack:
            if self.gates is not None:
                self._mask = self.gates.draw() if self.training else self.gates.expected()
                stack.enter_context(masked(self.model, self.sublayers, self._mask))
            return compute(self.model, feed)

    def checkpoint_layers(self) -> None:
        """Keep only each layer's input for the backward pass, which computes the rest again under the same gates."""
        checkpoint_layers(self.model, self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), masked(self.model, self.sublayers, self._mask)


def compute(model: PreTrainedModel, feed: dict[str, Any]) -> Computed:
    """Run a model and record the outputs of its layers."""
    with (
        distillation.recorded(layers_of(model, "encoder")) as encoder,
        distillation.recorded(layers_of(model, "decoder")) as decoder,
    ):
        logits = model(**feed).logits
    return Computed(logits_BTV=logits, encoder_BSD=encoder, decoder_BTD=decoder)
