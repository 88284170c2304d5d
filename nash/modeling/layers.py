"""The layers of a model in transformers, dense or compact."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from model_store.model.layout import Stack


def layers_of(model: PreTrainedModel, stack: Stack) -> nn.ModuleList:
    """The layers of one stack, in execution order."""
    module = model.get_encoder() if stack == "encoder" else model.get_decoder()
    layers: nn.ModuleList = next(child for child in module.children() if isinstance(child, nn.ModuleList))
    return layers


# For one pass through a layer: the contexts that it runs in, at first and when it is computed again.
Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]


def checkpoint_layers(model: PreTrainedModel, contexts: Contexts = lambda: (nullcontext(), nullcontext())) -> None:
    """Gradient checkpointing (arXiv 1604.06174): in training, a layer keeps its input only and is computed again.

    What is around a layer in the forward pass is no longer there in the backward pass; `contexts` brings it back.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the name is changing within the range that we support
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
