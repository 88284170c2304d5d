"""The weights of an encoder-decoder as every backend takes them: one form for all families, dense or compact.

Axes: I inputs and O outputs of a matrix, D model width, V vocabulary, P positions, F feed-forward units, HE heads times
head width, K buckets of distance, H heads of the dense model.

A stack embeds a token as `embedding[token] * embedding_scale + positions[position]`, then applies `embedding_norm`,
then its layers. A layer's sublayers are self-attention, cross-attention (decoder only), and the feed-forward. With N
the norm without weights, a sublayer S maps the residual x to

    x + S(N(x))          if the norm comes first (T5, Pegasus, mBART, M2M100)
    after(x + S(x))      if it comes last (BART, Marian)

A norm-first stack ends with N; a norm-last stack ends with its last layer.

Everything linear is folded into a matrix, at no cost in a step:
- the weights of a norm that comes first, into the matrices that read it; those of a final norm, into the output matrix
  and the decoder's cross-attention keys and values;
- the attention's scale, into the query;
- a key's bias, into nothing: it adds the same number to all scores of a query, and softmax cancels it;
- a value's bias, into the output's bias: the weights of a query's values sum to 1;
- the scale of the logits, into the output matrix.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from torch import Tensor

Heads = tuple[int, ...]
Layer = TypeVar("Layer")


@dataclass(frozen=True, kw_only=True)
class Int4Weights:
    """A matrix with four bits per weight; each group of 32 inputs of an output has its own step."""

    nibbles_OGB: Tensor  # uint8; two inputs per byte, as in model_store/model/int4.py
    steps_OG: Tensor  # float16


@dataclass(frozen=True, kw_only=True)
class Linear:
    """x W^T + b."""

    weight_OI: Tensor
    bias_O: Tensor | None
    int4: Int4Weights | None = None  # the same weights, if they were calibrated to four bits


@dataclass(frozen=True, kw_only=True)
class Norm:
    """The weights of a norm that could not be folded; the shift is None for the kind "rms"."""

    gain_D: Tensor
    shift_D: Tensor | None


@dataclass(frozen=True, kw_only=True)
class AttentionWeights:
    """softmax(query keys^T + position bias) values, for each kept head, then `out`.

    Without heads the matrices are empty, and only `out`'s bias and the norm are left.
    """

    heads: Heads  # kept heads by their index in the dense model, ascending: columns of the position bias
    query: Linear  # [HE, D]
    key: Linear  # [HE, D] without bias; reads the stack's own residual, or for cross-attention the encoder's output
    value: Linear  # [HE, D], likewise
    out: Linear  # [D, HE]
    after: Norm | None  # if the norm comes last


@dataclass(frozen=True, kw_only=True)
class FeedForwardWeights:
    """out(act(into(x))), or out(act(gate(x)) * into(x)) if gated."""

    gate: Linear | None  # [F, D]
    into: Linear  # [F, D]
    out: Linear  # [D, F]
    after: Norm | None  # if the norm comes last


@dataclass(frozen=True, kw_only=True)
class EncoderLayerWeights:
    """A sublayer is None if it leaves the residual unchanged."""

    attention: AttentionWeights | None
    ffn: FeedForwardWeights | None


@dataclass(frozen=True, kw_only=True)
class DecoderLayerWeights:
    """A sublayer is None if it leaves the residual unchanged."""

    attention: AttentionWeights | None
    cross: AttentionWeights | None
    ffn: FeedForwardWeights | None


@dataclass(frozen=True, kw_only=True)
class StackWeights(Generic[Layer]):
    """One side of the network."""

    embedding_VD: Tensor  # the same object in both stacks if they share it
    embedding_scale: float
    positions_PD: Tensor | None  # row p is for position p; P is the table's length, or the requested one if endless
    position_biases_KH: tuple[Tensor | None, ...]  # by layer, what its self-attention adds; one object if shared
    embedding_norm: Norm | None
    layers: Iterator[Layer]  # can be iterated once; reads a layer's weights on reaching it


@dataclass(frozen=True, kw_only=True)
class Network:
    """Both stacks and what their arithmetic needs to know. All tensors are float32, or float64 if requested.

    The layers and the output are read on demand, so a model is never in memory twice.
    """

    norm: Literal["rms", "layer"]  # x / sqrt(mean(x^2) + eps), or (x - mean) / sqrt(variance + eps)
    norm_eps: float
    norm_first: bool
    activation: str  # "relu", "gelu", "gelu_new" (the tanh approximation) or "silu"
    width: int  # of the hidden states
    head_dim: int
    vocab_size: int  # of the decoder and the logits; the encoder's may differ
    relative_max_distance: int  # of the position biases; their tables' rows are the buckets
    encoder_heads: tuple[Heads, ...]  # by layer
    self_heads: tuple[Heads, ...]  # by decoder layer
    cross_heads: tuple[Heads, ...]  # by decoder layer
    unplaced_token: int | None  # gets no position in the decoder: M2M100's padding, if it is generated
    encoder: StackWeights[EncoderLayerWeights]
    decoder: StackWeights[DecoderLayerWeights]
    output: Callable[[], Linear]  # [V, D]; calling it reads the weights
