"""The layers of a model in transformers, dense or compact."""

from torch import nn
from transformers import PreTrainedModel

from model_store.model.layout import Stack


def layers_of(model: PreTrainedModel, stack: Stack) -> nn.ModuleList:
    """The layers of one stack, in execution order."""
    module = model.get_encoder() if stack == "encoder" else model.get_decoder()
    layers: nn.ModuleList = next(child for child in module.children() if isinstance(child, nn.ModuleList))
    return layers
