"""The layers of a compact model of UMT5's layout.

Each self-attention computes its own bias, so the stock class works with fewer heads; in T5 one bias is passed through
the stack.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.umt5.modeling_umt5 import UMT5Attention, UMT5Block

from model_store.model.config_fields import Heads
from model_store.model.spec import ModelSpec
from nash.modeling.cache import count_positions
from nash.modeling.t5 import shrink_ffn


class BiasTable(nn.Embedding):
    """A table of relative positions for all heads of the dense model; only the kept heads are read."""

    def __init__(self, buckets: int, dense_heads: int, heads: Heads) -> None:
        super().__init__(buckets, dense_heads)
        self.heads = list(heads)

    def forward(self, buckets: Tensor) -> Tensor:
        """[..., kept heads] for bucket numbers [...]."""
        return super().forward(buckets)[..., self.heads]


class AbsentUMT5CrossAttention(nn.Module):
    """A cross-attention sublayer that was cut: the residual passes through."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """The input."""
        return hidden_states, None


class AbsentUMT5SelfAttention(nn.Module):
    """A self-attention sublayer that was cut: the residual passes through."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states: Tensor, past_key_values: Any = None, **kwargs: Any) -> tuple[Tensor, None]:
        """The input."""
        count_positions(past_key_values, hidden_states, self.layer_idx)
        return hidden_states, None


def shrink_umt5(model: PreTrainedModel, spec: ModelSpec) -> None:
    """Give every layer of a fresh model the widths of `spec`; absent sublayers hold no weights."""
    for i, layer in enumerate(spec.encoder):
        block = model.encoder.block[i]
        _shrink_self_attention(block, spec, layer.heads, i)
        shrink_ffn(block, spec, layer.ffn)
    for i, decoder_layer in enumerate(spec.decoder):
        block = model.decoder.block[i]
        _shrink_self_attention(block, spec, decoder_layer.self_heads, i)
        _shrink_cross_attention(block, spec, decoder_layer.cross_heads)
        shrink_ffn(block, spec, decoder_layer.ffn)


def _shrink_self_attention(block: UMT5Block, spec: ModelSpec, heads: Heads, index: int) -> None:
    if not heads:
        block.layer[0] = AbsentUMT5SelfAttention(index)
        return
    attention = block.layer[0].SelfAttention
    _shrink_matrices(attention, spec, heads)
    attention.relative_attention_bias = BiasTable(spec.relative_buckets, spec.num_heads, heads)


def _shrink_cross_attention(block: UMT5Block, spec: ModelSpec, heads: Heads) -> None:
    if heads:
        _shrink_matrices(block.layer[1].EncDecAttention, spec, heads)
    else:
        block.layer[1] = AbsentUMT5CrossAttention()


def _shrink_matrices(attention: UMT5Attention, spec: ModelSpec, heads: Heads) -> None:
    inner = len(heads) * spec.head_dim
    attention.n_heads, attention.inner_dim = len(heads), inner
    for name in ("q", "k", "v"):
        setattr(attention, name, nn.Linear(spec.d_model, inner, bias=False))
    attention.o = nn.Linear(inner, spec.d_model, bias=False)
