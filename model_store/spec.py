"""The shape of an encoder-decoder model, dense or compact.

A `ModelSpec` is read from and written to `config.json`. A dense model's config is the stock Hugging Face one;
a compact model's has `model_type` `nash_t5` and keys of its own that give every layer its own
width. Needs nothing beyond the standard library, so the engine can import it anywhere.
"""

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from model_store.errors import UnsupportedModelError

DENSE_MODEL_TYPE = "t5"
COMPACT_MODEL_TYPE = "nash_t5"

Heads = tuple[int, ...]

# Far above every real model: a hostile config must not make us allocate by the number it names.
_MOST_LAYERS_OR_HEADS = 1000


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
    """The whole shape. `num_heads`, `d_ff` and the `dense_*` counts are those of the dense original."""

    family: str
    vocab_size: int
    d_model: int
    head_dim: int
    num_heads: int
    d_ff: int
    activation: str  # "relu", "gelu_new", ...: the name in transformers' table of activations
    gated_ffn: bool
    relative_buckets: int
    relative_max_distance: int
    layer_norm_eps: float
    scale_logits: bool  # multiply the decoder's output by d_model^-0.5 before the vocabulary matrix
    pad_id: int
    eos_id: int
    decoder_start_id: int
    encoder: tuple[EncoderLayerSpec, ...]
    decoder: tuple[DecoderLayerSpec, ...]
    dense_encoder_layers: int
    dense_decoder_layers: int

    @property
    def compact(self) -> bool:
        """Whether anything at all was cut."""
        return self != dense_of(self)

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
        """Name and shape of every tensor that a checkpoint of this shape must hold.

        The token embedding is `shared.weight`; an untied `lm_head.weight` [vocab, d_model] may stand beside
        it. A relative-position table always has all of the dense model's heads and stands under block 0,
        whether or not block 0 has heads of its own.
        """
        d, bias = self.d_model, (self.relative_buckets, self.num_heads)
        yield "shared.weight", (self.vocab_size, d)
        for i, layer in enumerate(self.encoder):
            block = f"encoder.block.{i}.layer"
            yield from self._attention_shapes(f"{block}.0", "SelfAttention", len(layer.heads))
            yield from self._ffn_shapes(f"{block}.1", layer.ffn)
        for i, decoder_layer in enumerate(self.decoder):
            block = f"decoder.block.{i}.layer"
            yield from self._attention_shapes(f"{block}.0", "SelfAttention", len(decoder_layer.self_heads))
            yield from self._attention_shapes(f"{block}.1", "EncDecAttention", len(decoder_layer.cross_heads))
            yield from self._ffn_shapes(f"{block}.2", decoder_layer.ffn)
        for stack in ("encoder", "decoder"):
            yield f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", bias
            yield f"{stack}.final_layer_norm.weight", (d,)

    def optional_tensor_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor that a checkpoint of this shape may hold besides.

        An output matrix of its own is used; the others are copies of the embedding, and a table that T5 never used.
        """
        for name in ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens"):
            yield f"{name}.weight", (self.vocab_size, self.d_model)
        unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        yield unused, (self.relative_buckets, self.num_heads)

    def _attention_shapes(self, prefix: str, kind: str, heads: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        if heads == 0:
            return
        inner = heads * self.head_dim
        yield f"{prefix}.layer_norm.weight", (self.d_model,)
        for name in ("q", "k", "v"):
            yield f"{prefix}.{kind}.{name}.weight", (inner, self.d_model)
        yield f"{prefix}.{kind}.o.weight", (self.d_model, inner)

    def _ffn_shapes(self, prefix: str, units: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        if units == 0:
            return
        yield f"{prefix}.layer_norm.weight", (self.d_model,)
        for name in ("wi_0", "wi_1") if self.gated_ffn else ("wi",):
            yield f"{prefix}.DenseReluDense.{name}.weight", (units, self.d_model)
        yield f"{prefix}.DenseReluDense.wo.weight", (self.d_model, units)

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
    """The shape of the dense model that `spec` was cut from."""
    heads, fields = tuple(range(spec.num_heads)), dict(vars(spec))
    fields["encoder"] = (EncoderLayerSpec(heads=heads, ffn=spec.d_ff),) * spec.dense_encoder_layers
    fields["decoder"] = tuple(
        DecoderLayerSpec(self_heads=heads, cross_heads=heads, ffn=spec.d_ff, origin=i)
        for i in range(spec.dense_decoder_layers)
    )
    return ModelSpec(**fields)


def _parse(config: Mapping[str, Any]) -> ModelSpec:
    model_type = config.get("model_type")
    if model_type not in (DENSE_MODEL_TYPE, COMPACT_MODEL_TYPE):
        raise UnsupportedModelError(
            f"model_type {reprlib.repr(model_type)} is not supported: use a T5 model "
            f"({DENSE_MODEL_TYPE!r}, or {COMPACT_MODEL_TYPE!r} as `nash prune` writes it)"
        )
    if "auto_map" in config:
        raise UnsupportedModelError("config.json asks for remote code ('auto_map'): remove it, no code is loaded")
    widths = _parse_widths(config)
    num_layers = _count(config, "num_layers", most=_MOST_LAYERS_OR_HEADS)
    num_decoder_layers = _count(config, "num_decoder_layers", num_layers, most=_MOST_LAYERS_OR_HEADS)
    if model_type == COMPACT_MODEL_TYPE:
        return ModelSpec(**widths, **_parse_compact_layers(config, widths, num_layers, num_decoder_layers))
    heads, d_ff = tuple(range(widths["num_heads"])), widths["d_ff"]
    return ModelSpec(
        **widths,
        encoder=(EncoderLayerSpec(heads=heads, ffn=d_ff),) * num_layers,
        decoder=tuple(
            DecoderLayerSpec(self_heads=heads, cross_heads=heads, ffn=d_ff, origin=i) for i in range(num_decoder_layers)
        ),
        dense_encoder_layers=num_layers,
        dense_decoder_layers=num_decoder_layers,
    )


def _parse_widths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of a spec that is not about single layers."""
    ffn_kind = _text(config, "feed_forward_proj", "relu")
    gated = ffn_kind.startswith("gated-")
    activation = ffn_kind.removeprefix("gated-")
    if gated and activation == "gelu":
        activation = "gelu_new"  # the T5 v1.1 convention
    if activation not in ("relu", "gelu", "gelu_new", "silu"):
        raise UnsupportedModelError(
            f"feed_forward_proj {reprlib.repr(ffn_kind)} is not supported: "
            "use relu, gelu, gelu_new or silu, with or without 'gated-' before it"
        )
    vocab_size = _count(config, "vocab_size")
    return {
        "family": DENSE_MODEL_TYPE,
        "vocab_size": vocab_size,
        "d_model": _count(config, "d_model"),
        "head_dim": _count(config, "d_kv"),
        "num_heads": _count(config, "num_heads", most=_MOST_LAYERS_OR_HEADS),
        "d_ff": _count(config, "d_ff"),
        "activation": activation,
        "gated_ffn": gated,
        "relative_buckets": _count(config, "relative_attention_num_buckets", 32),
        "relative_max_distance": _count(config, "relative_attention_max_distance", 128),
        "layer_norm_eps": _positive(config, "layer_norm_epsilon", 1e-6),
        # transformers 5 writes scale_decoder_outputs; older files say the same through tie_word_embeddings.
        "scale_logits": _flag(config, "scale_decoder_outputs", _flag(config, "tie_word_embeddings", True)),
        "pad_id": _token(config, "pad_token_id", 0, vocab_size),
        "eos_id": _token(config, "eos_token_id", 1, vocab_size),
        "decoder_start_id": _token(config, "decoder_start_token_id", 0, vocab_size),
    }


def _parse_compact_layers(
    config: Mapping[str, Any], widths: Mapping[str, Any], num_layers: int, num_decoder_layers: int
) -> dict[str, Any]:
    """The layers of a compact model and how many its dense original had."""
    num_heads, d_ff = widths["num_heads"], widths["d_ff"]
    dense_encoder_layers = _count(config, "dense_encoder_layers", most=_MOST_LAYERS_OR_HEADS)
    if dense_encoder_layers < num_layers:
        raise _bad("dense_encoder_layers", dense_encoder_layers, f"at least num_layers, {num_layers}")
    dense_decoder_layers = _count(config, "dense_decoder_layers", most=_MOST_LAYERS_OR_HEADS)
    encoder = tuple(
        EncoderLayerSpec(heads=_heads(layer, "heads", num_heads), ffn=_ffn(layer, d_ff))
        for layer in _layers(config, "compact_encoder_layers", num_layers)
    )
    decoder = tuple(
        DecoderLayerSpec(
            self_heads=_heads(layer, "self_heads", num_heads),
            cross_heads=_heads(layer, "cross_heads", num_heads),
            ffn=_ffn(layer, d_ff),
            origin=_bounded(layer, "origin", dense_decoder_layers - 1),
        )
        for layer in _layers(config, "compact_decoder_layers", num_decoder_layers)
    )
    origins = [layer.origin for layer in decoder]
    if origins != sorted(set(origins)):
        raise _bad("compact_decoder_layers", origins, "a list of layers whose origins ascend")
    return {
        "encoder": encoder,
        "decoder": decoder,
        "dense_encoder_layers": dense_encoder_layers,
        "dense_decoder_layers": dense_decoder_layers,
    }


def _bad(key: str, value: object, wanted: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"config.json: {key} is {reprlib.repr(value)}: it must be {wanted}")


def _text(config: Mapping[str, Any], key: str, default: str) -> str:
    value = config.get(key, default)
    if not isinstance(value, str):
        raise _bad(key, value, "a text")
    return value


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise _bad(key, value, "true or false")
    return value


def _count(config: Mapping[str, Any], key: str, default: int | None = None, *, most: int = 2**31 - 1) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise _bad(key, value, f"a whole number from 1 to {most}")
    return value


def _bounded(config: Mapping[str, Any], key: str, most: int) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise _bad(key, value, f"a whole number from 0 to {most}")
    return value


def _token(config: Mapping[str, Any], key: str, default: int, vocab_size: int) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
        raise _bad(key, value, f"a token id below vocab_size, {vocab_size}")
    return value


def _positive(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise _bad(key, value, "a small positive number")
    return float(value)


def _layers(config: Mapping[str, Any], key: str, count: int) -> list[Mapping[str, Any]]:
    value = config.get(key)
    if not isinstance(value, list) or len(value) != count or not all(isinstance(v, dict) for v in value):
        raise _bad(key, value, f"a list of {count} layers")
    return value


def _heads(layer: Mapping[str, Any], key: str, num_heads: int) -> Heads:
    value = layer.get(key)
    fits = isinstance(value, list) and all(
        isinstance(h, int) and not isinstance(h, bool) and 0 <= h < num_heads for h in value
    )
    if not fits or not isinstance(value, list) or sorted(set(value)) != value:
        raise _bad(key, value, f"an ascending list of head numbers below {num_heads}")
    return tuple(value)


def _ffn(layer: Mapping[str, Any], d_ff: int) -> int:
    return _bounded(layer, "ffn", d_ff)
