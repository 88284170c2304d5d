"""What a compact layer must write to transformers' cache of keys and values."""

from typing import Any

from torch import Tensor


def count_positions(past_key_values: Any, hidden_BLD: Tensor, layer_idx: int) -> None:
    """Record positions without real keys and values for a self-attention that has no heads.

    Generation reads the number of past tokens from the first layer's cache, unless that cache has no elements at all.
    """
    if past_key_values is None:
        return
    batch, length, _ = hidden_BLD.shape
    nothing = hidden_BLD.new_zeros(batch, 1, length, 1)
    getattr(past_key_values, "self_attention_cache", past_key_values).update(nothing, nothing, layer_idx)
