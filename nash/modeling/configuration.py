"""Configurations of compact models, one class per family; separate from the models, as reading one needs no torch."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, PreTrainedConfig

from model_store.model.families import compact_model_type


@dataclass(kw_only=True)
class CompactFields:
    """The fields that a compact model's configuration adds to its family's: `ModelSpec.layer_config` writes them.

    The family's own layer counts are those of the remaining layers; its width, its heads and units and the `dense_*`
    counts are the dense model's. Key names must not begin with "encoder_" or "decoder_": transformers rewrites such
    keys when it asks for one half of an encoder-decoder's configuration.
    """

    compact_encoder_layers: list[Any] | None = None
    compact_decoder_layers: list[Any] | None = None
    dense_encoder_layers: int | None = None
    dense_decoder_layers: int | None = None
    compact_hidden: list[Any] | None = None


@cache
def compact_config_class(family: str) -> type[PreTrainedConfig]:
    """The configuration class of a family's compact models: `Nash` plus the stock class's name."""
    stock = CONFIG_MAPPING[family]
    made: type[PreTrainedConfig] = strict(
        type(f"Nash{stock.__name__}", (CompactFields, stock), {"model_type": compact_model_type(family)})
    )
    return made
