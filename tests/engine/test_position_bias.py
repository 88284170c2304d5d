"""Buckets and biases against transformers' T5."""

import pytest
import torch
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from server.engine.position_bias import DecoderBias, EncoderBias, relative_bucket

HEADS = 5
LAYERS = [(0, 1, 2, 3, 4), (1, 4), (), (3,)]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (64, 1000), (32, 17), (6, 128)])
def test_buckets_agree_bit_for_bit(buckets: int, max_distance: int, bidirectional: bool) -> None:
    relative = torch.arange(-1200, 1201)
    theirs = T5Attention._relative_position_bucket(
        relative, bidirectional=bidirectional, num_buckets=buckets, max_distance=max_distance
    )
    ours = relative_bucket(relative, bidirectional=bidirectional, buckets=buckets, max_distance=max_distance)
    assert torch.equal(ours, theirs)


def theirs(table: torch.Tensor, size: int, *, decoder: bool) -> torch.Tensor:
    """Transformers' bias [H, query, key]."""
    config = T5Config(num_heads=HEADS, d_kv=4, d_model=20, is_decoder=decoder)
    attention = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    attention.relative_attention_bias.weight = torch.nn.Parameter(table)
    bias: torch.Tensor = attention.compute_bias(size, size).detach()[0]
    return bias


@pytest.mark.parametrize("size", [1, 7, 40])
def test_the_encoder_s_masks_are_bias_plus_padding(size: int) -> None:
    table = torch.randn(32, HEADS)
    expected = theirs(table, size, decoder=False)
    masks = EncoderBias(table, LAYERS, max_distance=128, longest=40).masks(size, None)
    padding = torch.zeros(3, size)
    padding[1, size // 2 :] = -torch.inf
    padded = EncoderBias(table, LAYERS, max_distance=128, longest=40).masks(size, padding)
    for heads in LAYERS:
        mask, padded_mask = masks[heads], padded[heads]
        assert mask is not None
        assert padded_mask is not None
        assert torch.equal(mask, expected[None, list(heads)])
        assert torch.equal(padded_mask, expected[None, list(heads)] + padding[:, None, None])


def test_without_a_bias_only_the_padding_is_masked() -> None:
    padding = torch.zeros(3, 7)
    padding[1, 2:] = -torch.inf
    bias = EncoderBias(None, LAYERS, max_distance=1, longest=40)
    assert bias.masks(7, None) == dict.fromkeys(LAYERS)
    for mask in bias.masks(7, padding).values():
        assert mask is not None
        assert torch.equal(mask, padding[:, None, None])


def test_the_decoder_s_bias_is_picked_by_each_sequence_s_position() -> None:
    table, longest = torch.randn(32, HEADS), 48
    expected = theirs(table, longest, decoder=True)
    future = torch.arange(longest)[None] > torch.arange(longest)[:, None]
    expected = expected.masked_fill(future, -torch.inf)
    bias = DecoderBias(table, LAYERS, max_distance=128, longest=longest)
    positions = torch.tensor([0, 17, 31, 5])
    selected = bias.select(bias.windows(32), positions)
    for heads in LAYERS:
        by_sequence = expected[list(heads)][:, positions, :32].transpose(0, 1)
        assert torch.equal(selected[heads].view(4, len(heads), 32), by_sequence)
