"""T5, dense or compact: an encoder over whole sources and a decoder that advances one token a step.

Axes: B sources in an encoder batch, S positions of the longest, N running sequences, T self-attention keys in use,
D model width, H heads of one layer, E width of a head, R = N*H rows of attention, F feed-forward units, V vocabulary.
M stands for B*S where the rows of a batch are flat.

Every layer has widths of its own; a sublayer that is absent leaves the residual as it is. The matrices hold the norm
before them (see `Norm`), so no norm has a weight here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.attention import Attention
from server.engine.cache import KeyValueCache
from server.engine.matrix import Matrix, Norm
from server.engine.position_bias import DecoderBias, EncoderBias, Heads


@dataclass(frozen=True, kw_only=True)
class SelfAttention:
    """Rows of `qkv` are ordered head by head, each with its query, key and value: [H*3*E, D]."""

    heads: Heads
    qkv: Matrix
    out: Matrix


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """The query's side; keys and values of all layers are one matrix of the decoder."""

    query: Matrix
    out: Matrix


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """act(x W_in) W_out, or act(x W_gate) * (x W_in) W_out where gated."""

    activation: str
    into: Matrix
    gate: Matrix | None
    out: Matrix

    def __call__(self, x_ND: Tensor, norm: Norm) -> Tensor:
        """The residual after this sublayer, [N, D]."""
        normed_ND = norm(x_ND)
        if self.gate is None:
            hidden_NF = self.into.activate(normed_ND, self.activation)
        else:
            hidden_NF = self.gate.activate(normed_ND, self.activation).mul_(self.into.apply(normed_ND))
        return self.out.add(hidden_NF, x_ND)


@dataclass(frozen=True, kw_only=True)
class EncoderLayer:
    attention: SelfAttention | None
    ffn: FeedForward | None


@dataclass(frozen=True, kw_only=True)
class DecoderLayer:
    attention: SelfAttention | None
    cross: CrossAttention | None
    ffn: FeedForward | None


@dataclass(frozen=True, kw_only=True)
class Encoder:
    embedding_VD: Tensor
    layers: list[EncoderLayer]
    bias: EncoderBias
    norm: Norm
    head_dim: int

    def __call__(self, ids_BS: Tensor, padding_BS: Tensor | None) -> Tensor:
        """Hidden states [M, D] after the final norm, whose weight is in the matrix that reads them.

        `padding_BS` holds 0 where there is a token and -inf where there is none; None: there is no padding.
        """
        batch, size = ids_BS.shape
        masks = self.bias.masks(size, padding_BS)
        x_MD = self.embedding_VD.index_select(0, ids_BS.view(-1))
        for layer in self.layers:
            if layer.attention is not None:
                attention = layer.attention
                qkv = attention.qkv.apply(self.norm(x_MD)).view(batch, size, -1, 3, self.head_dim)
                query_BHSE, key_BHSE, value_BHSE = qkv.permute(3, 0, 2, 1, 4).unbind(0)
                context_BHSE = F.scaled_dot_product_attention(
                    query_BHSE, key_BHSE, value_BHSE, attn_mask=masks[attention.heads], scale=1.0
                )
                x_MD = attention.out.add(context_BHSE.transpose(1, 2).reshape(batch * size, -1), x_MD)
            if layer.ffn is not None:
                x_MD = layer.ffn(x_MD, self.norm)
        return self.norm(x_MD)


@dataclass(frozen=True, kw_only=True)
class DecoderViews:
    """What a step reads of the caches; valid as long as the running sequences and the bucket of T stay."""

    windows: dict[Heads, Tensor]  # of the position bias, for `DecoderBias.select`
    self_attention: list[Attention]  # by layer
    cross_attention: list[Attention]  # by layer
    cross_masks: dict[int, Tensor]  # by head count [R, 1, S], 0 or -inf; empty where all sources are as long


@dataclass(frozen=True, kw_only=True)
class Decoder:
    embedding_VD: Tensor
    layers: list[DecoderLayer]
    cross_keys_values: Matrix | None  # all layers' cross-attention: rows by layer, head, key or value, E
    cross_heads: list[int]  # of every layer, 0 where cross-attention is absent
    bias: DecoderBias
    norm: Norm
    output_scale_D: Tensor  # the final norm's weight with its folded factor, and the scaling of the logits
    output: Matrix
    head_dim: int

    def fill_cross_cache(self, cache: KeyValueCache, hidden_MD: Tensor, slots_B: Tensor) -> None:
        """Project the encoder's hidden states once for all layers and put them into the sources' slots."""
        if self.cross_keys_values is None:
            return
        batch = len(slots_B)
        projected = self.cross_keys_values.apply(hidden_MD).view(batch, -1, sum(self.cross_heads), 2, self.head_dim)
        by_layer = torch.split(projected.permute(0, 2, 3, 1, 4), self.cross_heads, dim=1)
        for layer, keys_values_BH2SE in enumerate(by_layer):
            if self.cross_heads[layer]:
                cache.fill(layer, slots_B, keys_values_BH2SE)

    def step(self, tokens_N: Tensor, positions_N: Tensor, cache: KeyValueCache, views: DecoderViews) -> Tensor:
        """Logits [N, V] of each sequence's next token; writes this position's keys and values into the cache."""
        sequences, norm, cross_masks = len(tokens_N), self.norm, views.cross_masks
        biases = self.bias.select(views.windows, positions_N)
        cache_rows = cache.rows_at(positions_N)
        x_ND = self.embedding_VD.index_select(0, tokens_N)
        for i, layer in enumerate(self.layers):
            if layer.attention is not None:
                attention = layer.attention
                qkv_R3E = attention.qkv.apply(norm(x_ND)).view(-1, 3, self.head_dim)
                cache.write(i, cache_rows[len(attention.heads)], qkv_R3E[:, 1:])
                context_R1E = views.self_attention[i](qkv_R3E[:, :1], biases[attention.heads])
                x_ND = attention.out.add(context_R1E.view(sequences, -1), x_ND)
            if layer.cross is not None:
                query_R1E = layer.cross.query.apply(norm(x_ND)).view(-1, 1, self.head_dim)
                context_R1E = views.cross_attention[i](query_R1E, cross_masks.get(self.cross_heads[i]))
                x_ND = layer.cross.out.add(context_R1E.view(sequences, -1), x_ND)
            if layer.ffn is not None:
                x_ND = layer.ffn(x_ND, norm)
        return self.output.apply(norm(x_ND).mul_(self.output_scale_D))
