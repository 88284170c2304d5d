"""All forms of attention over a cache compute the same."""

import pytest
import torch

from server.engine.pytorch.attention import (
    Attention,
    FusedAttention,
    ProductAttention,
    SumAttention,
    attention_over,
)


def views(dtype: torch.dtype, *, slots: int = 6, heads: int = 3, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of 4 running sequences over 9 positions: views into a larger cache, full of other things."""
    cache = torch.randn(slots, heads, 2, 16, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    return cache[:4, :, 0, :9], cache[:4, :, 1, :9]


@pytest.mark.parametrize("form", [ProductAttention, SumAttention, FusedAttention])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)]
)
@pytest.mark.parametrize("masked", [True, False])
def test_each_form_is_softmax_attention(
    form: type[ProductAttention | SumAttention | FusedAttention], dtype: torch.dtype, tolerance: float, masked: bool
) -> None:
    keys, values = views(dtype)
    query = torch.randn(12, 3, 8, generator=torch.Generator().manual_seed(2)).to(dtype)[:, :1]  # strided, as from qkv
    mask = torch.zeros(12, 1, 9, dtype=dtype)
    mask[5, :, 4:] = -torch.inf
    mask[7] = 1.5
    attention: Attention = form(keys, values)
    context = attention(query, mask if masked else None)
    scores = query.double() @ keys.flatten(0, 1).double().transpose(1, 2) + (mask.double() if masked else 0)
    expected = scores.softmax(-1) @ values.flatten(0, 1).double()
    assert context.shape == (12, 1, 8)
    assert torch.allclose(context.double(), expected, atol=tolerance)


def test_the_form_follows_the_dtype_and_the_size() -> None:
    assert isinstance(attention_over(*views(torch.float32)), ProductAttention)
    assert isinstance(attention_over(*views(torch.bfloat16)), SumAttention)
    assert isinstance(attention_over(*views(torch.float32, heads=64, width=512)), FusedAttention)
