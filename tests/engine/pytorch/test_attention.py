"""Attention over a cache is softmax attention."""

import pytest
import torch

from server.engine.pytorch.attention import CachedAttention, GatheredAttention


def make_cache(dtype: torch.dtype) -> torch.Tensor:
    """6 slots, 3 heads, keys and values of 16 positions, 8 wide."""
    return torch.randn(6, 3, 2, 16, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)]
)
@pytest.mark.parametrize("masked", [True, False])
def test_it_is_softmax_attention(dtype: torch.dtype, tolerance: float, masked: bool) -> None:
    """Of 4 running sequences over 9 positions: views into a larger cache, and the same slots gathered."""
    cache = make_cache(dtype)
    keys, values = cache[:4, :, 0, :9], cache[:4, :, 1, :9]
    query = torch.randn(12, 3, 8, generator=torch.Generator().manual_seed(2)).to(dtype)[:, :1]  # strided, as from qkv
    mask = torch.zeros(12, 1, 9, dtype=dtype)
    mask[5, :, 4:] = -torch.inf
    mask[7] = 1.5
    scores = query.double() @ keys.flatten(0, 1).double().transpose(1, 2) + (mask.double() if masked else 0)
    expected = scores.softmax(-1) @ values.flatten(0, 1).double()
    for attention in (CachedAttention(keys, values), GatheredAttention(cache, torch.arange(4), 9)):
        context = attention(query, mask if masked else None)
        assert context.shape == (12, 1, 8)
        assert torch.allclose(context.double(), expected, atol=tolerance)


def test_slots_are_gathered_in_any_order_and_as_they_are_at_the_call() -> None:
    cache = make_cache(torch.float32)
    gathered = GatheredAttention(cache, torch.tensor([3, 0, 3]), 5)
    cache[0] *= 2
    query = torch.ones(9, 1, 8)
    own = CachedAttention(cache[[3, 0, 3], :, 0, :5], cache[[3, 0, 3], :, 1, :5])
    assert torch.equal(gathered(query, None), own(query, None))
