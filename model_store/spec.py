"""The shape of an encoder-decoder model, dense or compact.

A `ModelSpec` is read from and written to `config.json`. A dense model's config is the stock Hugging Face one;
a compact model's has `model_type` `nash_` and its family's, and keys of its own that give every layer its own
width. Needs nothing beyond the standard library, so the engine can import it anywhere.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from model_store import config_fields as fields
from model_store.config_fields import Heads, bad
from model_store.errors import UnsupportedModelError
from model_store.families import FAMILIES, Family, family_of
from model_store.tensor_shapes import (
    bart_tensors,
    optional_bart_tensors,
    optional_t5_tensors,
    t5_tensors,
)

_LAYERS = fields.MOST_LAYERS_OR_HEADS

# Of the names that transformers has for activations. SiLU is swish.
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_new", "silu": "silu", "swish": "silu"}


@dataclass(frozen=True, kw_only=True)
class EncoderLayerSpec:
    """One encoder layer. A sublayer without heads, or without units, is absent: the residual passes."""

    heads: Heads  # kept attention heads by their index in the dense model, ascending
    ffn: int  # kept feed-forward units


@dataclass(frozen=True, kw_only=True)
class DecoderLayerSpec:
    """One decoder layer; `origin` is the dense decoder layer that it was."""

    self_heads: Heads
    cross_heads: Heads
    ffn: int
    origin: int


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The whole shape. `num_heads`, `d_ff`, `decoder_d_ff` and the `dense_*` counts are those of the dense original."""

    family: str  # a key of `FAMILIES`
    vocab_size: int  # of sources
    dense_vocab_size: int  # more where the vocabulary was trimmed
    target_vocab_size: int  # of what the decoder reads and writes; another only where the embeddings are not shared
    d_model: int
    head_dim: int
    num_heads: int  # of every layer, in both stacks
    d_ff: int
    decoder_d_ff: int
    activation: str  # "relu", "gelu", "gelu_new" or "silu": the name in transformers' table of activations
    gated_ffn: bool
    relative_buckets: int  # 0 where positions are not relative
    relative_max_distance: int  # likewise
    max_positions: int | None  # of a source and of a target; None: any number
    layer_norm_eps: float
    scale_embedding: bool  # multiply embedded tokens by d_model^0.5
    scale_logits: bool  # multiply the decoder's output by d_model^-0.5 before the vocabulary matrix
    shared_embedding: bool  # one table for sources and targets
    tied_output: bool  # the output matrix may be the embedding; a checkpoint can still hold one of its own
    pad_id: int
    eos_id: int
    decoder_start_id: int
    encoder: tuple[EncoderLayerSpec, ...]
    decoder: tuple[DecoderLayerSpec, ...]
    dense_encoder_layers: int
    dense_decoder_layers: int

    @property
    def facts(self) -> Family:
        """What holds for the whole family."""
        return FAMILIES[self.family]

    @property
    def compact(self) -> bool:
        """Whether anything at all was cut."""
        return self != dense_of(self) or self.vocab_size != self.dense_vocab_size

    @property
    def encoder_sparsity(self) -> float:
        """The fraction of the encoder's prunable weights (heads and feed-forward units) that is gone."""
        head, unit = self.head_weights, self.unit_weights
        kept = sum(len(layer.heads) * head + layer.ffn * unit for layer in self.encoder)
        return 1.0 - kept / (self.dense_encoder_layers * (self.num_heads * head + self.d_ff * unit))

    @property
    def head_weights(self) -> int:
        """Weights that one attention head holds in q, k, v and o."""
        return 4 * self.d_model * self.head_dim

    @property
    def unit_weights(self) -> int:
        """Weights that one feed-forward unit holds."""
        return (3 if self.gated_ffn else 2) * self.d_model

    def tensor_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor that a checkpoint of this shape must hold."""
        return t5_tensors(self) if self.facts.layout == "t5" else bart_tensors(self)

    def optional_tensor_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor that it may hold besides."""
        return optional_t5_tensors(self) if self.facts.layout == "t5" else optional_bart_tensors(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelSpec":
        """Read the shape out of a parsed `config.json`.

        Raises:
            UnsupportedModelError: another architecture, remote code, or a field that is missing or senseless.
        """
        return _parse(config)

    def layer_config(self) -> dict[str, Any]:
        """The keys that a compact model's `config.json` has on top of the dense one's."""
        return {
            "compact_encoder_layers": [{"heads": list(layer.heads), "ffn": layer.ffn} for layer in self.encoder],
            "compact_decoder_layers": [
                {
                    "self_heads": list(layer.self_heads),
                    "cross_heads": list(layer.cross_heads),
                    "ffn": layer.ffn,
                    "origin": layer.origin,
                }
                for layer in self.decoder
            ],
            "dense_encoder_layers": self.dense_encoder_layers,
            "dense_decoder_layers": self.dense_decoder_layers,
        }


def dense_of(spec: ModelSpec) -> ModelSpec:
    """The shape of the dense model that `spec` was cut from, with the vocabulary that `spec` has."""
    heads, values = tuple(range(spec.num_heads)), dict(vars(spec))
    values["encoder"] = (EncoderLayerSpec(heads=heads, ffn=spec.d_ff),) * spec.dense_encoder_layers
    values["decoder"] = tuple(
        DecoderLayerSpec(self_heads=heads, cross_heads=heads, ffn=spec.decoder_d_ff, origin=i)
        for i in range(spec.dense_decoder_layers)
    )
    return ModelSpec(**values)


def _parse(config: Mapping[str, Any]) -> ModelSpec:
    family, compact = family_of(config.get("model_type"))
    if "auto_map" in config:
        raise UnsupportedModelError("config.json asks for remote code ('auto_map'): remove it, no code is loaded")
    if FAMILIES[family].layout == "t5":
        widths = _parse_t5(config, family)
        num_layers = fields.count(config, "num_layers", most=_LAYERS)
        num_decoder_layers = fields.count(config, "num_decoder_layers", num_layers, most=_LAYERS)
    else:
        widths = _parse_bart(config, family)
        num_layers = fields.count(config, "encoder_layers", most=_LAYERS)
        num_decoder_layers = fields.count(config, "decoder_layers", most=_LAYERS)
    widths["dense_vocab_size"] = fields.count(config, "dense_vocab_size", widths["vocab_size"])
    if widths["dense_vocab_size"] < widths["vocab_size"]:
        raise bad("dense_vocab_size", widths["dense_vocab_size"], f"at least vocab_size, {widths['vocab_size']}")
    if compact:
        return ModelSpec(**widths, **_parse_compact_layers(config, widths, num_layers, num_decoder_layers))
    heads = tuple(range(widths["num_heads"]))
    return ModelSpec(
        **widths,
        encoder=(EncoderLayerSpec(heads=heads, ffn=widths["d_ff"]),) * num_layers,
        decoder=tuple(
            DecoderLayerSpec(self_heads=heads, cross_heads=heads, ffn=widths["decoder_d_ff"], origin=i)
            for i in range(num_decoder_layers)
        ),
        dense_encoder_layers=num_layers,
        dense_decoder_layers=num_decoder_layers,
    )


def _parse_t5(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Every field of a spec that is not about single layers, in T5's keys."""
    ffn_kind = fields.text(config, "feed_forward_proj", FAMILIES[family].feed_forward)
    gated = ffn_kind.startswith("gated-")
    activation = ffn_kind.removeprefix("gated-")
    if gated and activation == "gelu":
        activation = "gelu_new"  # the T5 v1.1 convention
    if activation not in _ACTIVATIONS.values():
        wanted = "relu, gelu, gelu_new or silu, with or without 'gated-' before it"
        raise bad("feed_forward_proj", ffn_kind, wanted)
    vocab_size = fields.count(config, "vocab_size")
    d_ff = fields.count(config, "d_ff")
    # transformers 5 writes scale_decoder_outputs; older files say the same through tie_word_embeddings. mT5 never
    # scales, though its configs say that it is tied.
    tied = fields.flag(config, "tie_word_embeddings", default=True)
    scaled = fields.flag(config, "scale_decoder_outputs", default=tied)
    # Half of the buckets, in the encoder a quarter, are single distances; the others reach on to the longest.
    buckets = fields.count(config, "relative_attention_num_buckets", 32)
    if buckets < 4:
        raise bad("relative_attention_num_buckets", buckets, "at least 4")
    max_distance = fields.count(config, "relative_attention_max_distance", 128)
    if max_distance <= buckets // 2:
        wanted = f"above {buckets // 2}, half of relative_attention_num_buckets"
        raise bad("relative_attention_max_distance", max_distance, wanted)
    return {
        "family": family,
        "vocab_size": vocab_size,
        "target_vocab_size": vocab_size,
        "d_model": fields.count(config, "d_model"),
        "head_dim": fields.count(config, "d_kv"),
        "num_heads": fields.count(config, "num_heads", most=_LAYERS),
        "d_ff": d_ff,
        "decoder_d_ff": d_ff,
        "activation": activation,
        "gated_ffn": gated,
        "relative_buckets": buckets,
        "relative_max_distance": max_distance,
        "max_positions": None,
        "layer_norm_eps": fields.positive(config, "layer_norm_epsilon", 1e-6),
        "scale_embedding": False,
        "scale_logits": scaled and family == "t5",
        "shared_embedding": True,
        "tied_output": True,
        **_parse_tokens(config, family, vocab_size, vocab_size),
    }


def _parse_bart(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The same in BART's keys."""
    facts = FAMILIES[family]
    activation = fields.text(config, "activation_function", facts.feed_forward)
    if activation not in _ACTIVATIONS:
        raise bad("activation_function", activation, " or ".join(_ACTIVATIONS))
    d_model = fields.count(config, "d_model")
    num_heads = fields.count(config, "encoder_attention_heads", most=_LAYERS)
    decoder_heads = fields.count(config, "decoder_attention_heads", most=_LAYERS)
    if decoder_heads != num_heads:
        raise bad("decoder_attention_heads", decoder_heads, f"encoder_attention_heads, {num_heads}")
    if d_model % num_heads:
        raise bad("d_model", d_model, f"a multiple of encoder_attention_heads, {num_heads}")
    max_positions = fields.count(config, "max_position_embeddings", 1024)
    if facts.positions == "endless" and d_model < 4:
        raise bad("d_model", d_model, "at least 4, for the wavelengths of its positions")
    vocab_size = target_vocab_size = fields.count(config, "vocab_size")
    shared = family != "marian" or fields.flag(config, "share_encoder_decoder_embeddings", default=True)
    if not shared:
        target_vocab_size = fields.count(config, "decoder_vocab_size", vocab_size)
    return {
        "family": family,
        "vocab_size": vocab_size,
        "target_vocab_size": target_vocab_size,
        "d_model": d_model,
        "head_dim": d_model // num_heads,
        "num_heads": num_heads,
        "d_ff": fields.count(config, "encoder_ffn_dim"),
        "decoder_d_ff": fields.count(config, "decoder_ffn_dim"),
        "activation": _ACTIVATIONS[activation],
        "gated_ffn": False,
        "relative_buckets": 0,
        "relative_max_distance": 0,
        "max_positions": None if facts.positions == "endless" else max_positions,
        "layer_norm_eps": 1e-5,  # torch's own: no config of these families names one
        "scale_embedding": fields.flag(config, "scale_embedding", default=family == "m2m_100"),
        "scale_logits": False,
        "shared_embedding": shared,
        "tied_output": fields.flag(config, "tie_word_embeddings", default=True),
        **_parse_tokens(config, family, vocab_size, target_vocab_size),
    }


def _parse_tokens(config: Mapping[str, Any], family: str, vocab_size: int, target_vocab_size: int) -> dict[str, int]:
    facts = FAMILIES[family]
    start = facts.decoder_start_id
    if family == "mbart" and config.get("decoder_start_token_id") is None:
        # A translator begins with a language, which its generation config or the request names.
        start = fields.token(config, "bos_token_id", start, target_vocab_size)
    return {
        "pad_id": fields.token(config, "pad_token_id", facts.pad_id, min(vocab_size, target_vocab_size)),
        "eos_id": fields.token(config, "eos_token_id", facts.eos_id, min(vocab_size, target_vocab_size)),
        "decoder_start_id": fields.token(config, "decoder_start_token_id", start, target_vocab_size),
    }


def _parse_compact_layers(
    config: Mapping[str, Any], widths: Mapping[str, Any], num_layers: int, num_decoder_layers: int
) -> dict[str, Any]:
    """The layers of a compact model and how many its dense original had."""
    num_heads = widths["num_heads"]
    dense_encoder_layers = fields.count(config, "dense_encoder_layers", most=_LAYERS)
    if dense_encoder_layers < num_layers:
        raise bad("dense_encoder_layers", dense_encoder_layers, f"at least the encoder's layers, {num_layers}")
    dense_decoder_layers = fields.count(config, "dense_decoder_layers", most=_LAYERS)
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
        raise bad("compact_decoder_layers", origins, "a list of layers whose origins ascend")
    return {
        "encoder": encoder,
        "decoder": decoder,
        "dense_encoder_layers": dense_encoder_layers,
        "dense_decoder_layers": dense_decoder_layers,
    }
