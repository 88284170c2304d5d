"""Gates on an encoder: their sparsity, their draws, their decision."""

from pathlib import Path

import pytest
import torch

from model_store.spec import EncoderLayerSpec, ModelSpec
from nash import gates
from nash.masking import EncoderGates, masked
from nash.models import load_dense, read_spec


@pytest.fixture
def spec(dense_dir: Path) -> ModelSpec:
    return read_spec(dense_dir)


def spread(own: EncoderGates) -> EncoderGates:
    """Give every gate an alpha of its own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for alpha in own.alphas()[0]:
            alpha.copy_(3 * torch.randn(alpha.shape, generator=generator))
    return own


def test_expected_sparsity_by_hand(spec: ModelSpec) -> None:
    """A head of 4 columns on width 16 holds 4 x 16 x 4 weights, a unit 2 x 16."""
    own = spread(EncoderGates(spec, heads=True, units=True))
    kept = sum(256 * gates.open_probability(a).sum().item() for a in own.head_alphas)
    kept += sum(32 * gates.open_probability(a).sum().item() for a in own.unit_alphas)
    assert own.sparsity().item() == pytest.approx(1 - kept / (3 * (3 * 256 + 24 * 32)), abs=1e-6)


def test_gates_start_open(spec: ModelSpec) -> None:
    own = EncoderGates(spec, heads=True, units=True)
    assert own.sparsity().item() < 0.02
    assert all(bool((v == 1).all()) for v in (*own.expected().heads, *own.expected().units))
    drawn = own.draw()
    values = torch.cat([*drawn.heads, *drawn.units])
    assert (values == 1).float().mean().item() > 0.7
    assert not torch.equal(torch.cat(own.draw().units), torch.cat(drawn.units)), "draws repeat"


def test_untrained_gates_stay_open(spec: ModelSpec) -> None:
    own = spread(EncoderGates(spec, heads=False, units=True))
    heads = torch.cat([*own.draw().heads, *own.expected().heads])
    assert bool((heads == 1).all())
    hardened = own.harden(0.3)
    assert all(bool(k.all()) for k in hardened.kept.heads)
    assert all(bool((v == 1).all()) for v in hardened.values.heads)
    units = torch.cat([gates.open_probability(a.detach()) for a in own.unit_alphas])
    assert own.sparsity().item() == pytest.approx(0.5 * (1 - units.mean().item()), abs=1e-6), "heads count as open"


def test_alphas_are_kept_where_gradients_live(spec: ModelSpec) -> None:
    own = EncoderGates(spec, heads=True, units=True)
    with torch.no_grad():
        own.head_alphas[0].fill_(1e6)
        own.unit_alphas[0].fill_(-1e6)
    own.draw()
    assert own.head_alphas[0].max().item() == pytest.approx(gates.MAX_ALPHA)
    assert own.unit_alphas[0].min().item() == pytest.approx(-gates.MAX_ALPHA)


@pytest.mark.parametrize("target", [0.0, 0.2, 0.5, 0.9])
def test_the_decision_is_the_models_sparsity(spec: ModelSpec, target: float) -> None:
    hardened = spread(EncoderGates(spec, heads=True, units=True)).harden(target)
    layers = tuple(
        EncoderLayerSpec(heads=tuple(heads.nonzero().flatten().tolist()), ffn=int(units.sum()))
        for heads, units in zip(hardened.kept.heads, hardened.kept.units, strict=True)
    )
    compact = ModelSpec(**{**vars(spec), "encoder": layers})
    one_head = 256 / (3 * (3 * 256 + 24 * 32))
    assert compact.encoder_sparsity == pytest.approx(target, abs=one_head)


def test_a_mask_lives_within_its_block(dense_dir: Path, spec: ModelSpec) -> None:
    model = load_dense(dense_dir).eval()
    ids = torch.tensor([[5, 6, 7, 1]])
    mask = spread(EncoderGates(spec, heads=True, units=True)).harden(0.5).mask()
    with torch.no_grad():
        before = model(input_ids=ids, decoder_input_ids=ids).logits
        with masked(model, mask):
            assert not torch.allclose(model(input_ids=ids, decoder_input_ids=ids).logits, before)
        assert torch.equal(model(input_ids=ids, decoder_input_ids=ids).logits, before)
