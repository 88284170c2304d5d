"""The weights of an encoder-decoder as every backend takes them: one form for all families, dense or compact.

Axes: I inputs and O outputs of a matrix, D model width, V vocabulary, P positions, F feed-forward units, HE heads times
head width, K buckets of distance, H heads of the dense model.

A stack embeds a token as `embedding[token] * embedding_scale + positions[position]`, then applies `embedding_norm`,
then its layers. A layer's sublayers are self-attention, in the decoder cross-attention, and the feed-forward. With N
the norm without weights, a sublayer S maps the residual x to

    x + S(N(x))          where the norm comes first (T5, Pegasus, mBART, M2M100)
    after(x + S(x))      where it comes last (BART, Marian)

A stack whose norm comes first ends with N; one whose norm comes last ends with its last layer.

Everything that is linear is folded into a matrix, at no cost in a step:
- the weights of a norm that comes first, into the matrices that read it; those of a final norm, into the output matrix
  and the decoder's cross-attention keys and values;
- the attention's scale, into the query;
- a key's bias, into nothing: it adds the same number to all scores of a query, which softmax takes away again;
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
    """A matrix in four bits a weight, each group of 32 inputs of an output in steps of its own."""

    nibbles_OGB: Tensor  # uint8; two inputs a byte, as model_store/model/int4.py says
    steps_OG: Tensor  # float16


@dataclass(frozen=True, kw_only=True)
class Linear:
    """x W^T + b."""

    weight_OI: Tensor
    bias_O: Tensor | None
    int4: Int4Weights | None = None  # the same weights, where they were calibrated to four bits


@dataclass(frozen=True, kw_only=True)
class Norm:
    """Weights of a norm that could not be folded; the shift is None for the kind "rms"."""

    gain_D: Tensor
    shift_D: Tensor | None


@dataclass(frozen=True, kw_only=True)
class AttentionWeights:
    """softmax(query keys^T + position bias) values, for each kept head, then `out`.

    Without heads the matrices are empty, and what is left is `out`'s bias and the norm.
    """

    heads: Heads  # kept heads by their index in the dense model, ascending: columns of the position bias
    query: Linear  # [HE, D]
    key: Linear  # [HE, D] without bias, of the stack's own residual, or of the encoder's output for cross-attention
    value: Linear  # [HE, D], likewise
    out: Linear  # [D, HE]
    after: Norm | None  # where the norm comes last


@dataclass(frozen=True, kw_only=True)
class FeedForwardWeights:
    """out(act(into(x))), or out(act(gate(x)) * into(x)) where gated."""

    gate: Linear | None  # [F, D]
    into: Linear  # [F, D]
    out: Linear  # [D, F]
    after: Norm | None  # where the norm comes last


@dataclass(frozen=True, kw_only=True)
class EncoderLayerWeights:
    """A sublayer is None where it leaves the residual as it is."""

    attention: AttentionWeights | None
    ffn: FeedForwardWeights | None


@dataclass(frozen=True, kw_only=True)
class DecoderLayerWeights:
    """A sublayer is None where it leaves the residual as it is."""

    attention: AttentionWeights | None
    cross: AttentionWeights | None
    ffn: FeedForwardWeights | None


@dataclass(frozen=True, kw_only=True)
class StackWeights(Generic[Layer]):
    """One side of the network."""

    embedding_VD: Tensor  # the same object in both stacks where they share it
    embedding_scale: float
    positions_PD: Tensor | None  # row p belongs to position p; P is what there is, or was asked for where it is endless
    position_biases_KH: tuple[Tensor | None, ...]  # by layer, what its self-attention adds; one object where shared
    embedding_norm: Norm | None
    layers: Iterator[Layer]  # can be read once; reads a layer's weights when it comes to it


@dataclass(frozen=True, kw_only=True)
class Network:
    """Both stacks and what their arithmetic needs to know. All tensors are float32, or float64 if that was asked for.

    The layers and the output are read when they are wanted, so that a model is never in memory twice.
    """

    norm: Literal["rms", "layer"]  # x / sqrt(mean(x^2) + eps), or (x - mean) / sqrt(variance + eps)
    norm_eps: float
    norm_first: bool
    activation: str  # "relu", "gelu", "gelu_new" (the approximation by tanh) or "silu"
    d_model: int
    head_dim: int
    vocab_size: int  # of the decoder and the logits; the encoder's may be another
    relative_max_distance: int  # of the position biases; buckets are their tables' rows
    encoder_heads: tuple[Heads, ...]  # by layer
    self_heads: tuple[Heads, ...]  # by decoder layer
    cross_heads: tuple[Heads, ...]  # by decoder layer
    unplaced_token: int | None  # in the decoder it gets no position: M2M100's padding, where it is generated
    encoder: StackWeights[EncoderLayerWeights]
    decoder: StackWeights[DecoderLayerWeights]
    output: Callable[[], Linear]  # [V, D], reads it
