"""The shape of an encoder-decoder model, dense or compact.

A dense model's `config.json` is the stock Hugging Face one. A compact model's has `nash_` before its family in
`model_type`, and extra keys that give each layer its own width. `config.py` reads both.
"""

from dataclasses import dataclass, replace
from typing import Any

from model_store.model.config_fields import Heads
from model_store.model.families import FAMILIES, Family


@dataclass(frozen=True, kw_only=True)
class EncoderLayerSpec:
    """One encoder layer. A sublayer without heads or units is absent: the residual passes through."""

    heads: Heads  # kept attention heads by their index in the dense model, ascending
    ffn: int  # kept feed-forward units


@dataclass(frozen=True, kw_only=True)
class DecoderLayerSpec:
    """One decoder layer; `origin` is its number in the dense decoder."""

    self_heads: Heads
    cross_heads: Heads
    ffn: int
    origin: int


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The whole shape.

    `d_model`, `num_heads`, `d_ff`, `decoder_d_ff` and the `dense_*` counts are those of the dense original.
    """

    family: str  # a key of `FAMILIES`
    vocab_size: int  # of sources
    dense_vocab_size: int  # larger if the vocabulary was trimmed
    target_vocab_size: int  # of what the decoder reads and writes; differs only if the embeddings are not shared
    d_model: int
    head_dim: int
    num_heads: int  # of every layer, in both stacks
    d_ff: int
    decoder_d_ff: int
    activation: str  # "relu", "gelu", "gelu_new" or "silu": the name in transformers' table of activations
    gated_ffn: bool
    relative_buckets: int  # 0 if positions are not relative
    relative_max_distance: int  # likewise
    max_positions: int | None  # of a source and of a target; None: unlimited
    layer_norm_eps: float
    scale_embedding: bool  # multiply embedded tokens by d_model^0.5
    scale_logits: bool  # multiply the decoder's output by d_model^-0.5 before the vocabulary matrix
    shared_embedding: bool  # one table for sources and targets
    tied_output: bool  # the output matrix may be the embedding; a checkpoint can still contain its own
    pad_id: int
    eos_id: int
    decoder_start_id: int
    encoder: tuple[EncoderLayerSpec, ...]
    decoder: tuple[DecoderLayerSpec, ...]
    dense_encoder_layers: int
    dense_decoder_layers: int
    hidden: tuple[int, ...]  # kept dimensions of the hidden states by their number in the dense model, ascending

    @property
    def width(self) -> int:
        """The width of the hidden states, of which a dense model has `d_model`."""
        return len(self.hidden)

    @property
    def facts(self) -> Family:
        """The facts of its family."""
        return FAMILIES[self.family]

    @property
    def compact(self) -> bool:
        """Whether anything at all was cut."""
        return self != dense_of(self) or self.vocab_size != self.dense_vocab_size

    @property
    def encoder_sparsity(self) -> float:
        """The fraction of the encoder's prunable weights (heads and feed-forward units) that was cut."""
        head, unit = self.head_weights, self.unit_weights
        kept = sum(len(layer.heads) * head + layer.ffn * unit for layer in self.encoder) * self.width / self.d_model
        return 1.0 - kept / (self.dense_encoder_layers * (self.num_heads * head + self.d_ff * unit))

    @property
    def head_weights(self) -> int:
        """The number of weights of one attention head in the dense model's q, k, v and o."""
        return 4 * self.d_model * self.head_dim

    @property
    def unit_weights(self) -> int:
        """The number of weights of one feed-forward unit in the dense model."""
        return (3 if self.gated_ffn else 2) * self.d_model

    def layer_config(self) -> dict[str, Any]:
        """The keys that a compact model's `config.json` adds to the dense one's."""
        cut_hidden = {} if self.width == self.d_model else {"compact_hidden": list(self.hidden)}
        return cut_hidden | {
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
    """The shape of the dense model that `spec` was cut from, but with `spec`'s own vocabulary."""
    heads, values = tuple(range(spec.num_heads)), dict(vars(spec))
    values["encoder"] = (EncoderLayerSpec(heads=heads, ffn=spec.d_ff),) * spec.dense_encoder_layers
    values["decoder"] = tuple(
        DecoderLayerSpec(self_heads=heads, cross_heads=heads, ffn=spec.decoder_d_ff, origin=i)
        for i in range(spec.dense_decoder_layers)
    )
    values["hidden"] = tuple(range(spec.d_model))
    return ModelSpec(**values)


def shortened(spec: ModelSpec, kept_layers: tuple[int, ...]) -> ModelSpec:
    """The dense model's shape with only these decoder layers and as many encoder layers as `spec` has, all whole."""
    whole = dense_of(spec)
    encoder = whole.encoder[: len(spec.encoder)]
    return replace(whole, encoder=encoder, decoder=tuple(whole.decoder[i] for i in kept_layers))
