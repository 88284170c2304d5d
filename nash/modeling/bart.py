"""The layers of a compact model of BART's layout: BART, mBART, Marian, Pegasus, M2M100.

A sublayer that is cut entirely still adds the bias of its last matrix. In post-norm models its norm still follows; in
pre-norm models there is nothing left to norm.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model_store.model.spec import ModelSpec
from nash.modeling.cache import count_positions


class BiasAlone(nn.Module):
    """What remains of a linear map without inputs: its bias, at every position."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The bias [..., D] for states [..., D]."""
        return self.bias.expand_as(hidden_states)


class HeadlessBartAttention(nn.Module):
    """What remains of a self- or cross-attention without heads."""

    def __init__(self, spec: ModelSpec, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.out_proj = BiasAlone(spec.d_model)

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """The output projection's bias."""
        if key_value_states is None:
            count_positions(past_key_values, hidden_states, self.layer_idx)
        return self.out_proj(hidden_states), None


def shrink_bart(model: PreTrainedModel, spec: ModelSpec) -> None:
    """Give every layer of a fresh model the widths of `spec`."""
    for i, layer in enumerate(spec.encoder):
        module = model.model.encoder.layers[i]
        _shrink_attention(module, "self_attn", spec, len(layer.heads), i)
        _shrink_ffn(module, spec, layer.ffn)
    for i, decoder_layer in enumerate(spec.decoder):
        module = model.model.decoder.layers[i]
        _shrink_attention(module, "self_attn", spec, len(decoder_layer.self_heads), i)
        _shrink_attention(module, "encoder_attn", spec, len(decoder_layer.cross_heads), i)
        _shrink_ffn(module, spec, decoder_layer.ffn)


def _shrink_attention(layer: nn.Module, name: str, spec: ModelSpec, heads: int, index: int) -> None:
    if heads == 0:
        setattr(layer, name, HeadlessBartAttention(spec, index))
        _drop_first_norm(layer, f"{name}_layer_norm", spec)
        return
    attention, inner = getattr(layer, name), heads * spec.head_dim
    attention.num_heads = heads
    for matrix in ("q_proj", "k_proj", "v_proj"):
        setattr(attention, matrix, nn.Linear(spec.d_model, inner))
    attention.out_proj = nn.Linear(inner, spec.d_model)


def _shrink_ffn(layer: nn.Module, spec: ModelSpec, units: int) -> None:
    if units == 0:
        layer.fc1, layer.fc2 = nn.Identity(), BiasAlone(spec.d_model)
        _drop_first_norm(layer, "final_layer_norm", spec)
        return
    layer.fc1, layer.fc2 = nn.Linear(spec.d_model, units), nn.Linear(units, spec.d_model)


def _drop_first_norm(layer: nn.Module, name: str, spec: ModelSpec) -> None:
    if spec.facts.norm_first:
        setattr(layer, name, nn.Identity())
