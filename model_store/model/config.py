"""Turn a parsed `config.json` into a `ModelSpec`."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from model_store.errors import UnsupportedModelError
from model_store.model import config_fields as fields
from model_store.model.bart import BartLayout
from model_store.model.config_fields import bad
from model_store.model.families import FAMILIES, Family, family_of
from model_store.model.layout import HIDDEN, Kind, Layout, Stack
from model_store.model.spec import DecoderLayerSpec, EncoderLayerSpec, ModelSpec
from model_store.model.t5 import T5Layout
from model_store.model.umt5 import UMT5Layout

LAYOUTS: Mapping[str, type[Layout]] = MappingProxyType({"t5": T5Layout, "umt5": UMT5Layout, "bart": BartLayout})


def layout_of(spec: ModelSpec) -> Layout:
    """The names that a model of this shape uses."""
    return LAYOUTS[spec.facts.layout](spec)


def spec_of(config: Mapping[str, Any]) -> ModelSpec:
    """Read the shape from a parsed `config.json`.

    Raises:
        UnsupportedModelError: another architecture, remote code, or a missing or invalid field.
    """
    family, compact = family_of(config.get("model_type"))
    if "auto_map" in config:
        raise UnsupportedModelError("config.json asks for remote code ('auto_map'): remove it, no code is loaded")
    facts = FAMILIES[family]
    layout = LAYOUTS[facts.layout]
    widths = layout.widths(config, facts)
    num_layers, num_decoder_layers = layout.layer_counts(config)
    widths["family"] = family
    widths |= _tokens(config, facts, widths["vocab_size"], widths["target_vocab_size"])
    widths["dense_vocab_size"] = fields.count(config, "dense_vocab_size", widths["vocab_size"], most=fields.MOST_TOKENS)
    if widths["dense_vocab_size"] < widths["vocab_size"]:
        raise bad("dense_vocab_size", widths["dense_vocab_size"], f"at least vocab_size, {widths['vocab_size']}")
    if compact:
        return ModelSpec(**widths, **_compact_layers(config, widths, num_layers, num_decoder_layers))
    heads, hidden = tuple(range(widths["num_heads"])), tuple(range(widths["d_model"]))
    return ModelSpec(
        **widths,
        encoder=(EncoderLayerSpec(heads=heads, ffn=widths["d_ff"]),) * num_layers,
        decoder=tuple(
            DecoderLayerSpec(self_heads=heads, cross_heads=heads, ffn=widths["decoder_d_ff"], origin=i)
            for i in range(num_decoder_layers)
        ),
        dense_encoder_layers=num_layers,
        dense_decoder_layers=num_decoder_layers,
        hidden=hidden,
    )


def _tokens(config: Mapping[str, Any], facts: Family, vocab_size: int, target_vocab_size: int) -> dict[str, int]:
    start, both = facts.decoder_start_id, min(vocab_size, target_vocab_size)
    if facts.starts_with_bos and config.get("decoder_start_token_id") is None:
        start = fields.token(config, "bos_token_id", start, target_vocab_size)
    return {
        "pad_id": fields.token(config, "pad_token_id", facts.pad_id, both),
        "eos_id": fields.token(config, "eos_token_id", facts.eos_id, both),
        "decoder_start_id": fields.token(config, "decoder_start_token_id", start, target_vocab_size),
    }


def _compact_layers(
    config: Mapping[str, Any], widths: Mapping[str, Any], num_layers: int, num_decoder_layers: int
) -> dict[str, Any]:
    """The layers of a compact model, how many its dense original had, and what is kept of the hidden states."""
    num_heads = widths["num_heads"]
    dense_encoder_layers = fields.count(config, "dense_encoder_layers", most=fields.MOST_LAYERS_OR_HEADS)
    if dense_encoder_layers < num_layers:
        raise bad("dense_encoder_layers", dense_encoder_layers, f"at least the encoder's layers, {num_layers}")
    dense_decoder_layers = fields.count(config, "dense_decoder_layers", most=fields.MOST_LAYERS_OR_HEADS)
    encoder = tuple(
        EncoderLayerSpec(
            heads=fields.heads(layer, "heads", num_heads), ffn=fields.bounded(layer, "ffn", widths["d_ff"])
        )
        for layer in fields.layers(config, "compact_encoder_layers", num_layers)
    )
    decoder = tuple(
        DecoderLayerSpec(
            self_heads=fields.heads(layer, "self_heads", num_heads),
            cross_heads=fields.heads(layer, "cross_heads", num_heads),
            ffn=fields.bounded(layer, "ffn", widths["decoder_d_ff"]),
            origin=fields.bounded(layer, "origin", dense_decoder_layers - 1),
        )
        for layer in fields.layers(config, "compact_decoder_layers", num_decoder_layers)
    )
    origins = [layer.origin for layer in decoder]
    if origins != sorted(set(origins)):
        raise bad("compact_decoder_layers", origins, "a list of layers with strictly ascending origins")
    return {
        "encoder": encoder,
        "decoder": decoder,
        "dense_encoder_layers": dense_encoder_layers,
        "dense_decoder_layers": dense_decoder_layers,
        "hidden": fields.hidden(config, "compact_hidden", widths["d_model"]),
    }


def with_kept(spec: ModelSpec, kept: dict[str, tuple[int, ...]]) -> ModelSpec:
    """The shape left when each sublayer in `kept`, named by its `out`, keeps only the parts at these positions.

    `HIDDEN` names the dimensions of the hidden states.
    """
    left = {(s.stack, s.layer, s.kind): kept[s.out] for s in layout_of(spec).sublayers() if s.out in kept}

    def heads(stack: Stack, i: int, kind: Kind, before: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(before[p] for p in left.get((stack, i, kind), range(len(before))))

    def units(stack: Stack, i: int, before: int) -> int:
        return len(left.get((stack, i, "feed_forward"), range(before)))

    return replace(
        spec,
        hidden=tuple(spec.hidden[p] for p in kept.get(HIDDEN, range(spec.width))),
        encoder=tuple(
            EncoderLayerSpec(
                heads=heads("encoder", i, "self_attention", layer.heads), ffn=units("encoder", i, layer.ffn)
            )
            for i, layer in enumerate(spec.encoder)
        ),
        decoder=tuple(
            DecoderLayerSpec(
                self_heads=heads("decoder", i, "self_attention", layer.self_heads),
                cross_heads=heads("decoder", i, "cross_attention", layer.cross_heads),
                ffn=units("decoder", i, layer.ffn),
                origin=layer.origin,
            )
            for i, layer in enumerate(spec.decoder)
        ),
    )
