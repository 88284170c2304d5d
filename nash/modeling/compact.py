"""Compact models in transformers, one class for each family: every layer has its own heads and feed-forward width.

The hidden states may have fewer dimensions than the dense model's.

Stock classes do the work; only the parts that assume equal layers are replaced. Importing this module registers the
models with transformers' Auto classes.
"""

import copy
from collections.abc import Callable, Mapping
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from model_store.model.config import layout_of, spec_of
from model_store.model.families import FAMILIES
from model_store.model.spec import ModelSpec
from nash.modeling.bart import shrink_bart
from nash.modeling.configuration import compact_config_class
from nash.modeling.hidden import keep_hidden
from nash.modeling.t5 import shrink_t5
from nash.modeling.umt5 import shrink_umt5

# By layout, the function that gives the layers of a fresh model the widths of a spec.
_SHRINK: Mapping[str, Callable[[PreTrainedModel, ModelSpec], None]] = {
    "t5": shrink_t5,
    "umt5": shrink_umt5,
    "bart": shrink_bart,
}


class CompactModel(PreTrainedModel):
    """Turns a stock class into its compact form; it comes before the stock class in the bases."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        spec = spec_of(config.to_dict())
        _SHRINK[spec.facts.layout](self, spec)
        keep_hidden(self, spec)


def stock_class(spec: ModelSpec) -> type[PreTrainedModel]:
    """transformers' own class for the shape's family."""
    return _stock_class(spec.family)


def compact_class(spec: ModelSpec) -> type[CompactModel]:
    """The class of compact models of the shape's family: `Nash` plus the stock class's name."""
    return _compact_class(spec.family)


def _stock_class(family: str) -> type[PreTrainedModel]:
    stock: type[PreTrainedModel] = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[CONFIG_MAPPING[family]]
    return stock


@cache
def _compact_class(family: str) -> type[CompactModel]:
    stock, config = _stock_class(family), compact_config_class(family)
    made = type(f"Nash{stock.__name__}", (CompactModel, stock), {"config_class": config})
    return cast("type[CompactModel]", made)


def compact_config(spec: ModelSpec, dense: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a model of shape `spec` that was cut from one with the configuration `dense`."""
    model = compact_class(spec)
    fields = copy.deepcopy(dense.to_dict())
    fields.pop("model_type")
    fields["architectures"] = [model.__name__]
    fields |= layout_of(spec).counts
    return model.config_class(**fields, **spec.layer_config())


for _family in FAMILIES:
    AutoConfig.register(compact_config_class(_family).model_type, compact_config_class(_family), exist_ok=True)
    AutoModelForSeq2SeqLM.register(compact_config_class(_family), _compact_class(_family), exist_ok=True)


@torch.no_grad()
def fill(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Give a fresh model copies of these tensors; names that share a tensor here share it in the model.

    transformers ties a new model's matrices as its configuration says. Here the tensors decide which names are one
    matrix (T5 v1.1 has an output matrix of its own, whatever its configuration says).

    Raises:
        ValueError: the tensors do not fit the model.
    """
    present = model.state_dict(keep_vars=True)
    if present.keys() != state.keys():
        raise ValueError(f"tensors that are missing or unknown: {sorted(present.keys() ^ state.keys())}")
    copies: dict[tuple[int, torch.Size], Tensor] = {}
    for name, tensor in state.items():
        old = present[name]
        if old.shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but the model has {tuple(old.shape)}")
        key = (tensor.data_ptr(), tensor.shape)
        if key not in copies:
            fresh = tensor.detach().clone()
            copies[key] = nn.Parameter(fresh, old.requires_grad) if isinstance(old, nn.Parameter) else fresh
        place, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(place), attribute, copies[key])
