"""An encoder over whole sources and a decoder that advances row by row: every family, dense or compact.

Axes: B sources in an encoder batch, S positions of the longest, N rows of a step, T self-attention keys in use,
D model width, H heads of one layer, E width of a head, R = N*H rows of attention, F feed-forward units, V vocabulary,
W rows whose logits are wanted. M is B*S where the rows of a batch are flat.

Every layer has its own widths; an absent sublayer leaves the residual unchanged. `network` says what is folded into the
matrices and where the norms are; here `norm` comes before a sublayer and its `after` behind it, and one of the two does
nothing.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.pytorch.attention import Attention
from server.engine.pytorch.cache import KeyValueCache
from server.engine.pytorch.matrices.matrix import Matrix
from server.engine.pytorch.norm import RowNorm
from server.engine.pytorch.position_bias import DecoderBias, EncoderBias


@dataclass(frozen=True, kw_only=True)
class SelfAttention:
    """The rows of `qkv` are ordered by head, each with its query, key and value: [H*3*E, D]."""

    heads: int
    qkv: Matrix
    out: Matrix
    after: RowNorm


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """The query side; the keys and values of all layers are one matrix of the decoder."""

    query: Matrix
    out: Matrix
    after: RowNorm


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """act(x W_in) W_out, or act(x W_gate) * (x W_in) W_out if gated."""

    activation: str
    into: Matrix
    gate: Matrix | None
    out: Matrix
    after: RowNorm

    def __call__(self, x_ND: Tensor, norm: RowNorm) -> Tensor:
        """The residual after this sublayer, [N, D]."""
        normed_ND = norm(x_ND)
        if self.gate is None:
            hidden_NF = self.into.activate(normed_ND, self.activation)
        else:
            hidden_NF = self.gate.activate(normed_ND, self.activation).mul_(self.into.apply(normed_ND))
        return self.after(self.out.add(hidden_NF, x_ND))


@dataclass(frozen=True, kw_only=True)
class BiasAndNorm:
    """What remains of a sublayer without heads or units: its bias and the norm behind it."""

    bias_D: Tensor | None
    after: RowNorm

    def __call__(self, x_ND: Tensor) -> Tensor:
        """The residual after this sublayer, [N, D]."""
        return self.after(x_ND if self.bias_D is None else x_ND + self.bias_D)


@dataclass(frozen=True, kw_only=True)
class EncoderLayer:
    attention: SelfAttention | BiasAndNorm | None
    ffn: FeedForward | BiasAndNorm | None


@dataclass(frozen=True, kw_only=True)
class DecoderLayer:
    attention: SelfAttention | BiasAndNorm | None
    cross: CrossAttention | BiasAndNorm | None
    ffn: FeedForward | BiasAndNorm | None


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """From tokens and their positions to the first residual."""

    tokens_VD: Tensor  # scaled
    positions_PD: Tensor | None
    unplaced_token: int | None  # it gets no position
    norm: RowNorm

    def __call__(self, tokens_N: Tensor, positions_N: Tensor) -> Tensor:
        """[N, D]."""
        x_ND = self.tokens_VD.index_select(0, tokens_N)
        if self.positions_PD is not None:
            placed_ND = self.positions_PD.index_select(0, positions_N)
            if self.unplaced_token is not None:
                placed_ND.mul_((tokens_N != self.unplaced_token)[:, None])
            x_ND.add_(placed_ND)
        return self.norm(x_ND)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    embedding: Embedding
    layers: list[EncoderLayer]
    bias: EncoderBias
    norm: RowNorm
    head_dim: int

    def __call__(self, ids_BS: Tensor, padding_BS: Tensor | None) -> Tensor:
        """Hidden states [M, D] after the last norm, whose weights are in the matrix that reads them.

        `padding_BS` holds 0 at a token and -inf at padding; None: there is no padding.
        """
        batch, size = ids_BS.shape
        positions_M = torch.arange(size, device=ids_BS.device).repeat(batch)
        x_MD = self.embedding(ids_BS.view(-1), positions_M)
        for layer, mask in zip(self.layers, self.bias.masks(size, padding_BS), strict=True):
            if isinstance(layer.attention, SelfAttention):
                attention = layer.attention
                qkv = attention.qkv.apply(self.norm(x_MD)).view(batch, size, -1, 3, self.head_dim)
                query_BHSE, key_BHSE, value_BHSE = qkv.permute(3, 0, 2, 1, 4).unbind(0)
                context_BHSE = F.scaled_dot_product_attention(
                    query_BHSE, key_BHSE, value_BHSE, attn_mask=mask, scale=1.0
                )
                x_MD = attention.out.add(context_BHSE.transpose(1, 2).reshape(batch * size, -1), x_MD)
                x_MD = attention.after(x_MD)
            elif layer.attention is not None:
                x_MD = layer.attention(x_MD)
            x_MD = _feed_forward(layer.ffn, x_MD, self.norm)
        return self.norm(x_MD)


@dataclass(frozen=True, kw_only=True)
class DecoderViews:
    """What a step reads from the caches; valid while the rows' slots and the bucket of T stay the same."""

    windows: list[Tensor]  # of the position biases, for `DecoderBias.select`
    slots_N: Tensor | None  # of the rows; None: row i is slot i
    self_attention: list[Attention]  # by layer
    cross_attention: list[Attention]  # by layer
    cross_masks: dict[int, Tensor]  # by head count [R, 1, S], 0 or -inf; empty if all sources are equally long


@dataclass(frozen=True, kw_only=True)
class Decoder:
    embedding: Embedding
    layers: list[DecoderLayer]
    cross_keys_values: Matrix | None  # all layers' cross-attention: rows by layer, head, key or value, E
    cross_heads: list[int]  # of every layer, 0 if cross-attention is absent
    bias: DecoderBias
    norm: RowNorm
    output: Matrix
    head_dim: int

    def fill_cross_cache(
        self, cache: KeyValueCache, hidden_MD: Tensor, slots_K: Tensor, sources_K: Tensor, *, batch: int
    ) -> None:
        """Project the hidden states of `batch` sources once for all layers; `slots_K[k]` gets source `sources_K[k]`."""
        if self.cross_keys_values is None:
            return
        projected = self.cross_keys_values.apply(hidden_MD).view(batch, -1, sum(self.cross_heads), 2, self.head_dim)
        by_layer = torch.split(projected.permute(0, 2, 3, 1, 4), self.cross_heads, dim=1)
        for layer, keys_values_BH2SE in enumerate(by_layer):
            if self.cross_heads[layer]:
                if len(slots_K) > batch:  # beams share a source
                    keys_values_BH2SE = keys_values_BH2SE.index_select(0, sources_K)
                cache.fill(layer, slots_K, keys_values_BH2SE)

    def cross_masks(self, mask_NS: Tensor) -> dict[int, Tensor]:
        """By head count [R, 1, S]: each source's mask, 0 or -inf, repeated for each head."""
        rows = len(mask_NS)
        return {
            heads: mask_NS[:, None].expand(-1, heads, -1).reshape(rows * heads, 1, -1)
            for heads in set(self.cross_heads) - {0}
        }

    def step(
        self,
        tokens_N: Tensor,
        positions_N: Tensor,
        cache: KeyValueCache,
        views: DecoderViews,
        wanted_W: Tensor | None = None,
    ) -> Tensor:
        """Logits [W, V] of what follows each wanted row, or every row if `wanted_W` is None.

        Writes the rows' keys and values into the cache.
        """
        rows, norm, cross_masks = len(tokens_N), self.norm, views.cross_masks
        biases = self.bias.select(views.windows, positions_N)
        cache_rows = cache.rows_at(positions_N, views.slots_N)
        x_ND = self.embedding(tokens_N, positions_N)
        for i, layer in enumerate(self.layers):
            if isinstance(layer.attention, SelfAttention):
                attention = layer.attention
                qkv_R3E = attention.qkv.apply(norm(x_ND)).view(-1, 3, self.head_dim)
                cache.write(i, cache_rows[attention.heads], qkv_R3E[:, 1:])
                context_R1E = views.self_attention[i](qkv_R3E[:, :1], biases[i])
                x_ND = attention.after(attention.out.add(context_R1E.view(rows, -1), x_ND))
            elif layer.attention is not None:
                x_ND = layer.attention(x_ND)
            if isinstance(layer.cross, CrossAttention):
                query_R1E = layer.cross.query.apply(norm(x_ND)).view(-1, 1, self.head_dim)
                context_R1E = views.cross_attention[i](query_R1E, cross_masks.get(self.cross_heads[i]))
                x_ND = layer.cross.after(layer.cross.out.add(context_R1E.view(rows, -1), x_ND))
            elif layer.cross is not None:
                x_ND = layer.cross(x_ND)
            x_ND = _feed_forward(layer.ffn, x_ND, norm)
        if wanted_W is not None:
            x_ND = x_ND.index_select(0, wanted_W)
        return self.output.apply(norm(x_ND))


def _feed_forward(ffn: FeedForward | BiasAndNorm | None, x_ND: Tensor, norm: RowNorm) -> Tensor:
    if isinstance(ffn, FeedForward):
        return ffn(x_ND, norm)
    return x_ND if ffn is None else ffn(x_ND)
