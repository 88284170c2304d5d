"""The configurations of compact models, a class for each family. Apart from the models: reading one needs no torch."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, PreTrainedConfig

from model_store.model.families import compact_model_type


@dataclass(kw_only=True)
class CompactFields:
    """What a compact model's configuration has beyond its family's: `ModelSpec.layer_config` writes it.

    The family's own numbers of layers count the layers that are left; its numbers of heads and units, and the `dense_*`
    counts, are the dense model's. Key names must not begin with "encoder_" or "decoder_": transformers rewrites such
    keys when it asks for one half of an encoder-decoder's configuration.
    """

    compact_encoder_layers: list[Any] | None = None
    compact_decoder_layers: list[Any] | None = None
    dense_encoder_layers: int | None = None
    dense_decoder_layers: int | None = None


@cache
def compact_config_class(family: str) -> type[PreTrainedConfig]:
    """The class of the configurations of a family's compact models: `Nash` before the stock one's name."""
    stock = CONFIG_MAPPING[family]
    made: type[PreTrainedConfig] = strict(
        type(f"Nash{stock.__name__}", (CompactFields, stock), {"model_type": compact_model_type(family)})
    )
    return made
