"""The configurations of compact models. Apart from the models, so that reading one needs no torch."""

from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import (
    BartConfig,
    M2M100Config,
    MarianConfig,
    MBartConfig,
    MT5Config,
    PegasusConfig,
    T5Config,
)

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


@strict
class NashT5Config(CompactFields, T5Config):
    """Of a compact T5."""

    model_type = compact_model_type("t5")


@strict
class NashMT5Config(CompactFields, MT5Config):
    """Of a compact mT5."""

    model_type = compact_model_type("mt5")


@strict
class NashBartConfig(CompactFields, BartConfig):
    """Of a compact BART."""

    model_type = compact_model_type("bart")


@strict
class NashMBartConfig(CompactFields, MBartConfig):
    """Of a compact mBART."""

    model_type = compact_model_type("mbart")


@strict
class NashMarianConfig(CompactFields, MarianConfig):
    """Of a compact Marian."""

    model_type = compact_model_type("marian")


@strict
class NashPegasusConfig(CompactFields, PegasusConfig):
    """Of a compact Pegasus."""

    model_type = compact_model_type("pegasus")


@strict
class NashM2M100Config(CompactFields, M2M100Config):
    """Of a compact M2M100."""

    model_type = compact_model_type("m2m_100")
