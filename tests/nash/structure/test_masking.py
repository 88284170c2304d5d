"""Gates on a model: their sparsity, their draws, their decision."""

from pathlib import Path

import pytest
import torch

from model_store.model.config import layout_of, with_kept
from model_store.model.layout import HIDDEN
from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from nash.modeling.folders import load_dense
from nash.structure import gates
from nash.structure.masking import GateKinds, Gates, HardenedGates, masked
from tests.tiny_families import CASES, build_tiny

COFI = GateKinds(sublayers=True, hidden=True, stacks="both")
KINDS = {
    "nash": GateKinds(),
    "units alone": GateKinds(heads=False),
    "sublayers too": GateKinds(sublayers=True),
    "sublayers alone": GateKinds(heads=False, units=False, sublayers=True),
    "units and sublayers": GateKinds(heads=False, sublayers=True),
    "without hidden states": GateKinds(sublayers=True, stacks="both"),
}


@pytest.fixture
def spec(dense_dir: Path) -> ModelSpec:
    return Model.open(dense_dir).spec


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """Its decoder's feed-forward has another width than its encoder's."""
    return Model.open(build_tiny(CASES["bart"], tmp_path_factory.mktemp("bart") / "model")).spec


def spread(own: Gates) -> Gates:
    """Give every gate an alpha of its own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for alpha in own.alphas():
            alpha.copy_(3 * torch.randn(alpha.shape, generator=generator))
    return own


def test_expected_sparsity_by_hand(spec: ModelSpec) -> None:
    """A head of 4 columns on width 16 holds 4 x 16 x 4 weights, a unit 2 x 16."""
    own = spread(Gates(spec, GateKinds()))
    heads, units = own.alphas()[:3], own.alphas()[3:]
    assert [len(alpha) for alpha in (*heads, *units)] == [3, 3, 3, 24, 24, 24]
    kept = sum(256 * gates.open_probability(a).sum().item() for a in heads)
    kept += sum(32 * gates.open_probability(a).sum().item() for a in units)
    assert own.sparsity().item() == pytest.approx(1 - kept / (3 * (3 * 256 + 24 * 32)), abs=1e-6)


def test_expected_sparsity_of_both_stacks_by_hand(bart: ModelSpec) -> None:
    """Probabilities multiply: 3 + 2 x 2 attentions of 3 heads, 3 x 41 and 2 x 28 units, on width 24."""
    own = spread(Gates(bart, COFI))
    whole = [gates.open_probability(a).item() for a in own.sublayer_alphas.values()]
    parts = [gates.open_probability(a).sum().item() for a in own.part_alphas.values()]
    sizes = [4 * 24 * 8] * 7 + [2 * 24] * 5
    assert [len(a) for a in own.part_alphas.values()] == [3] * 7 + [41] * 3 + [28] * 2
    assert own.hidden_alpha is not None
    width = gates.open_probability(own.hidden_alpha).mean().item()
    kept = width * sum(w * p * size for w, p, size in zip(whole, parts, sizes, strict=True))
    assert own.sparsity().item() == pytest.approx(1 - kept / (7 * 3 * 768 + (3 * 41 + 2 * 28) * 48), abs=1e-6)


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_gates_start_open(spec: ModelSpec, kinds: GateKinds) -> None:
    own = Gates(spec, kinds)
    assert own.sparsity().item() < 0.02
    assert all(bool((v == 1).all()) for v in own.expected().values())
    drawn = torch.stack([torch.cat([*own.draw().values()]) for _ in range(200)])
    assert (drawn == 1).float().mean().item() > 0.6
    assert bool((drawn != drawn[0]).any()), "draws repeat"  # two of them may well be alike


def test_what_has_no_gate_stays_open(spec: ModelSpec) -> None:
    own = spread(Gates(spec, GateKinds(heads=False)))
    attention = [s.out for s in own.sublayers if s.has_heads]
    for mask in (own.draw(), own.expected()):
        assert all(bool((mask[name] == 1).all()) for name in attention)
    hardened = own.harden(0.3)
    assert all(bool(hardened.kept[name].all() and (hardened.values[name] == 1).all()) for name in attention)
    units = torch.cat([gates.open_probability(a.detach()) for a in own.alphas()])
    assert own.sparsity().item() == pytest.approx(0.5 * (1 - units.mean().item()), abs=1e-6), "heads count as open"


def test_a_sublayers_gate_multiplies_its_parts(spec: ModelSpec) -> None:
    own = spread(Gates(spec, GateKinds(sublayers=True)))
    for i, sublayer in enumerate(own.sublayers):
        part, whole = own.part_alphas[str(i)], own.sublayer_alphas[str(i)]
        expected = gates.deterministic(part) * gates.deterministic(whole)
        torch.testing.assert_close(own.expected()[sublayer.out], expected, rtol=0, atol=0)


def test_alphas_are_kept_where_gradients_live(spec: ModelSpec) -> None:
    own = Gates(spec, GateKinds(sublayers=True))
    with torch.no_grad():
        own.alphas()[0].fill_(1e6)
        own.alphas()[-1].fill_(-1e6)
    own.draw()
    assert own.alphas()[0].max().item() == pytest.approx(gates.MAX_ALPHA)
    assert own.alphas()[-1].min().item() == pytest.approx(-gates.MAX_ALPHA)


def left(spec: ModelSpec, hardened: HardenedGates) -> ModelSpec:
    return with_kept(spec, {name: tuple(k.nonzero().flatten().tolist()) for name, k in hardened.kept.items()})


@pytest.mark.parametrize("target", [0.0, 0.2, 0.5, 0.9])
def test_the_decision_is_the_models_sparsity(spec: ModelSpec, target: float) -> None:
    compact = left(spec, spread(Gates(spec, GateKinds())).harden(target))
    one_head = 256 / (3 * (3 * 256 + 24 * 32))
    assert compact.encoder_sparsity == pytest.approx(target, abs=one_head / 2)
    assert compact.decoder == spec.decoder


@pytest.mark.parametrize("target", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_the_realised_sparsity_is_the_targets_within_one_gate(bart: ModelSpec, kinds: GateKinds, target: float) -> None:
    target = min(target, kinds.reach(bart))
    own = spread(Gates(bart, kinds))
    compact = layout_of(left(bart, own.harden(target))).sublayers()
    gated = {s.out for s in own.sublayers}
    closed = sum(
        (before.parts - after.parts) * before.part_weights
        for before, after in zip(layout_of(bart).sublayers(), compact, strict=True)
    )
    assert all(
        before.parts == after.parts
        for before, after in zip(layout_of(bart).sublayers(), compact, strict=True)
        if before.out not in gated
    )
    total = sum(s.parts * s.part_weights for s in own.sublayers)
    largest = max(s.part_weights * (1 if kinds.on_parts(s) else s.parts) for s in own.sublayers)
    assert abs(closed - target * total) <= largest / 2


@pytest.mark.parametrize("target", [0.0, 0.2, 0.5, 0.8])
def test_hidden_states_count_in_every_weight(bart: ModelSpec, target: float) -> None:
    """Realised within half of the largest gate, a dimension or a head; and the kept dimensions are the likeliest."""
    own = spread(Gates(bart, COFI))
    hardened = own.harden(target)
    compact = left(bart, hardened)
    kept = sum(s.parts * s.part_weights for s in layout_of(compact).sublayers()) * compact.width / bart.d_model
    total = sum(s.parts * s.part_weights for s in own.sublayers)
    largest = max(total / bart.d_model, *(s.part_weights for s in own.sublayers))
    assert abs(total - kept - target * total) <= largest / 2
    assert own.hidden_alpha is not None
    alphas = own.hidden_alpha.detach()
    closed = alphas[~hardened.kept[HIDDEN]]
    assert compact.width == bart.d_model - len(closed)
    assert not len(closed) or float(closed.max()) <= float(alphas[hardened.kept[HIDDEN]].min())


def test_a_dimension_of_the_hidden_states_stays(bart: ModelSpec) -> None:
    own = Gates(bart, COFI)
    with torch.no_grad():
        own.alphas()[-1].fill_(-4.0)
    hardened = own.harden(1.0)
    assert left(bart, hardened).width == 1
    assert not any(kept.any() for name, kept in hardened.kept.items() if name != HIDDEN)


def test_a_kept_dimension_is_never_silent(bart: ModelSpec) -> None:
    """A norm of the compact model counts it, so the masked student's must count it too."""
    own = Gates(bart, COFI)
    with torch.no_grad():
        own.alphas()[-1].fill_(-4.0)
    hardened = own.harden(0.0)
    assert hardened.kept[HIDDEN].all()
    assert float(own.expected()[HIDDEN].detach().max()) == 0.0
    assert float(hardened.values[HIDDEN].min()) > 0.0


def test_sublayers_without_gated_parts_stay_or_go_whole(bart: ModelSpec) -> None:
    own = spread(Gates(bart, KINDS["sublayers alone"]))
    kept = own.harden(0.5).kept
    assert {int(k.sum()) / len(k) for k in kept.values()} == {0.0, 1.0}
    probability = {s.out: a.item() for s, a in zip(own.sublayers, own.alphas(), strict=True)}
    closed = [p for name, p in probability.items() if not kept[name].any()]
    assert max(closed) < min(p for name, p in probability.items() if kept[name].any())


def test_parts_are_ranked_with_their_sublayers(spec: ModelSpec) -> None:
    """A sublayer that is all but closed goes before parts that are rather closed than open."""
    own = Gates(spec, GateKinds(sublayers=True))
    with torch.no_grad():
        own.part_alphas["0"].fill_(-1.0)
        own.sublayer_alphas["4"].fill_(-4.0)
    name = own.sublayers[4].out
    closed = {out for out, kept in own.harden(1 / 6).kept.items() if not kept.all()}
    assert closed == {name}
    assert not own.harden(1 / 6).kept[name].any()


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_reach(spec: ModelSpec, kinds: GateKinds) -> None:
    """Attention and feed-forward weigh the same here: half is out of reach where the heads have no gate at all."""
    assert kinds.reach(spec) == pytest.approx(0.5 if kinds == KINDS["units alone"] else 1.0)


def test_a_mask_lives_within_its_block(dense_dir: Path, spec: ModelSpec) -> None:
    model = load_dense(Model.open(dense_dir)).eval()
    ids = torch.tensor([[5, 6, 7, 1]])
    mask = spread(Gates(spec, COFI)).harden(0.5).mask()
    with torch.no_grad():
        before = model(input_ids=ids, decoder_input_ids=ids).logits
        with masked(model, layout_of(spec).sublayers(), mask):
            assert not torch.allclose(model(input_ids=ids, decoder_input_ids=ids).logits, before)
        assert torch.equal(model(input_ids=ids, decoder_input_ids=ids).logits, before)
