"""Buckets and biases against transformers' T5."""

import pytest
import torch
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from server.engine.pytorch.position_bias import DecoderBias, EncoderBias
from server.engine.weights.relative_positions import Heads, relative_bucket

HEADS = 5
LAYERS: list[Heads] = [(0, 1, 2, 3, 4), (1, 4), (), (3,)]


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


@pytest.fixture(params=["shared", "own"])
def tables(request: pytest.FixtureRequest) -> list[torch.Tensor | None]:
    """One table for all layers, or one for each that has heads."""
    shared = torch.randn(32, HEADS)
    if request.param == "shared":
        return [shared] * len(LAYERS)
    return [torch.randn(32, HEADS) if heads else None for heads in LAYERS]


@pytest.mark.parametrize("size", [1, 7, 40])
def test_the_encoder_s_masks_are_bias_plus_padding(tables: list[torch.Tensor | None], size: int) -> None:
    bias = EncoderBias(tables, LAYERS, max_distance=128, longest=40)
    padding = torch.zeros(3, size)
    padding[1, size // 2 :] = -torch.inf
    both = zip(bias.masks(size, None), bias.masks(size, padding), strict=True)
    for table, heads, (mask, padded) in zip(tables, LAYERS, both, strict=True):
        if heads:
            assert table is not None
            assert mask is not None
            assert padded is not None
            expected = theirs(table, size, decoder=False)[None, list(heads)]
            assert torch.equal(mask, expected)
            assert torch.equal(padded, expected + padding[:, None, None])


def test_layers_with_the_same_heads_of_a_table_take_the_same_mask() -> None:
    first, second = torch.randn(32, HEADS), torch.randn(32, HEADS)
    bias = EncoderBias([first, first, second, second], [(1, 4)] * 4, max_distance=128, longest=9)
    masks = list(bias.masks(9, None))
    assert masks[0] is masks[1]
    assert masks[2] is masks[3]
    assert not torch.equal(masks[0], masks[2])  # type: ignore[arg-type]


def test_without_a_bias_only_the_padding_is_masked() -> None:
    padding = torch.zeros(3, 7)
    padding[1, 2:] = -torch.inf
    bias = EncoderBias([None] * len(LAYERS), LAYERS, max_distance=0, longest=40)
    assert list(bias.masks(7, None)) == [None] * len(LAYERS)
    for mask in bias.masks(7, padding):
        assert mask is not None
        assert torch.equal(mask, padding[:, None, None])


def in_float32(tables: list[torch.Tensor | None], layers: list[Heads], *, longest: int) -> DecoderBias:
    """The decoder's biases on the CPU."""
    device = torch.device("cpu")
    return DecoderBias(tables, layers, max_distance=128, longest=longest, dtype=torch.float32, device=device)


def test_the_decoder_s_bias_is_picked_by_each_sequence_s_position(tables: list[torch.Tensor | None]) -> None:
    longest = 48
    future = torch.arange(longest)[None] > torch.arange(longest)[:, None]
    bias = in_float32(tables, LAYERS, longest=longest)
    positions = torch.tensor([0, 17, 31, 5])
    selected = bias.select(bias.windows(32), positions)
    for table, heads, found in zip(tables, LAYERS, selected, strict=True):
        if not heads:
            assert found is None
            continue
        assert table is not None
        assert found is not None
        expected = theirs(table, longest, decoder=True).masked_fill(future, -torch.inf)
        by_sequence = expected[list(heads)][:, positions, :32].transpose(0, 1)
        assert torch.equal(found.view(4, len(heads), 32), by_sequence)


def test_layers_without_a_table_share_by_how_many_heads_they_have() -> None:
    bias = in_float32([None] * 4, [(0, 2), (), (1, 3), (4,)], longest=16)
    windows = bias.windows(16)
    assert [window.shape[1:] for window in windows] == [(2, 16), (1, 16)]
    first, none, third, last = bias.select(windows, torch.tensor([3]))
    assert none is None
    assert first is third
    assert last is not None
    assert last.flatten().tolist() == [0.0] * 4 + [-torch.inf] * 12
