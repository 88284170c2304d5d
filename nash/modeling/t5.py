"""The layers of a compact model of T5's layout. mT5's attention is T5's, so one class serves both."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, T5Config
from transformers.models.t5.modeling_t5 import T5Attention, T5Block

from model_store.model.config_fields import Heads
from model_store.model.spec import ModelSpec
from nash.modeling.cache import count_positions


class CompactAttention(T5Attention):
    """Attention with some of the dense model's heads.

    The relative-position bias passed through the stack keeps the columns of all heads; each layer picks its own.
    `heads` are the kept heads' indices in the dense model.
    """

    def __init__(self, config: T5Config, heads: Heads, *, has_bias: bool, layer_idx: int, causal: bool) -> None:
        super().__init__(config, has_relative_attention_bias=has_bias, layer_idx=layer_idx, is_causal=causal)
        self.heads = list(heads)
        self.n_heads = len(heads)
        self.inner_dim = len(heads) * self.key_value_proj_dim
        for name in ("q", "k", "v"):
            setattr(self, name, nn.Linear(self.d_model, self.inner_dim, bias=False) if heads else None)
        self.o = nn.Linear(self.inner_dim, self.d_model, bias=False) if heads else None

    def stack_bias(self, hidden_BLD: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        """The bias of all the dense model's heads [1, H, L, K], as the first layer computes it for the stack."""
        past = 0 if cache is None else cache.get_seq_length(self.layer_idx)
        # A cache of fixed size has more keys than there are tokens so far; the mask has the number of keys.
        keys = int(past) + hidden_BLD.shape[1] if mask is None else mask.shape[-1]
        bias: Tensor = self.compute_bias(hidden_BLD.shape[1], keys, hidden_BLD.device, past)
        return bias

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Like T5Attention, but takes and returns the bias of all heads; cross-attention has none."""
        if key_value_states is not None:
            output, _, weights = super().forward(hidden_states, mask, key_value_states, None, past_key_values, **kwargs)
            return output, None, weights
        if position_bias is None:
            position_bias = self.stack_bias(hidden_states, mask, past_key_values)
        own = position_bias[:, self.heads]
        output, _, weights = super().forward(hidden_states, mask, None, own, past_key_values, **kwargs)
        return output, position_bias, weights


class HeadlessT5Attention(CompactAttention):
    """What remains of a self-attention without heads: in the first layer, the stack's bias table."""

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Zeros, and the bias for the layers that follow."""
        if position_bias is None:
            position_bias = self.stack_bias(hidden_states, mask, past_key_values)
        count_positions(past_key_values, hidden_states, self.layer_idx)
        return torch.zeros_like(hidden_states), position_bias, None


class AbsentT5SelfAttention(nn.Module):
    """A self-attention sublayer that was cut: it passes on the residual and the stack's bias."""

    def __init__(self, attention: HeadlessT5Attention) -> None:
        super().__init__()
        self.SelfAttention = attention

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """The input, and the bias for the layers that follow."""
        _, bias, _ = self.SelfAttention(hidden_states, attention_mask, None, position_bias, past_key_values)
        return hidden_states, bias, None


class AbsentT5CrossAttention(nn.Module):
    """A cross-attention sublayer that was cut: the residual passes through."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None, None]:
        """The input."""
        return hidden_states, None, None


def shrink_t5(model: PreTrainedModel, spec: ModelSpec) -> None:
    """Give every layer of a fresh model the widths of `spec`; absent sublayers hold no weights."""
    for i, layer in enumerate(spec.encoder):
        block = model.encoder.block[i]
        _shrink_self_attention(block, model.encoder.config, layer.heads, i)
        shrink_ffn(block, spec, layer.ffn)
    for i, decoder_layer in enumerate(spec.decoder):
        block = model.decoder.block[i]
        _shrink_self_attention(block, model.decoder.config, decoder_layer.self_heads, i)
        _shrink_cross_attention(block, model.decoder.config, decoder_layer.cross_heads, i)
        shrink_ffn(block, spec, decoder_layer.ffn)


def _shrink_self_attention(block: T5Block, config: T5Config, heads: Heads, index: int) -> None:
    settings: dict[str, Any] = {"has_bias": index == 0, "layer_idx": index, "causal": config.is_decoder}
    if heads:
        block.layer[0].SelfAttention = CompactAttention(config, heads, **settings)
    else:
        block.layer[0] = AbsentT5SelfAttention(HeadlessT5Attention(config, heads, **settings))


def _shrink_cross_attention(block: T5Block, config: T5Config, heads: Heads, index: int) -> None:
    if heads:
        block.layer[1].EncDecAttention = CompactAttention(config, heads, has_bias=False, layer_idx=index, causal=False)
    else:
        block.layer[1] = AbsentT5CrossAttention()


def shrink_ffn(block: T5Block, spec: ModelSpec, units: int) -> None:
    """Give a block's feed-forward this number of units; with none, the residual passes through."""
    if units == 0:
        block.layer[-1] = nn.Identity()
        return
    dense = block.layer[-1].DenseReluDense
    for name in ("wi_0", "wi_1") if spec.gated_ffn else ("wi",):
        setattr(dense, name, nn.Linear(spec.d_model, units, bias=False))
    dense.wo = nn.Linear(units, spec.d_model, bias=False)
