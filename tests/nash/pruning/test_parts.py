"""The description of where parts sit, and what else works on any family, against transformers' own models."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from model_store.model.config import layout_of, with_kept
from model_store.model.model import Model
from model_store.model.spec import shortened
from nash.data.examples import IGNORED
from nash.modeling.folders import load_dense
from nash.modeling.layers import layers_of
from nash.pruning.distillation import recorded
from nash.training.objective import shift_right
from nash.training.optimizer import parameter_groups
from tests.nash.pruned_families import FAMILIES, batch, build


@pytest.fixture(scope="module", params=FAMILIES)
def dense_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense model; read only."""
    return build(FAMILIES[request.param], tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture(scope="module")
def model(dense_dir: Path) -> PreTrainedModel:
    return load_dense(Model.open(dense_dir)).eval()


def test_every_hidden_matrix_is_a_sublayers(dense_dir: Path, model: PreTrainedModel) -> None:
    """And has the shape that the description gives it."""
    spec = Model.open(dense_dir).spec
    named: list[str] = []
    for sublayer in layout_of(spec).sublayers():
        width = sublayer.parts * sublayer.columns
        weights = [model.get_submodule(name).weight for name in (*sublayer.inputs, sublayer.out)]
        assert {tuple(w.shape) for w in weights[:-1]} == {(width, spec.d_model)}
        assert weights[-1].shape == (spec.d_model, width)
        assert sum(w.numel() for w in weights) == sublayer.parts * sublayer.part_weights
        assert model.get_submodule(sublayer.norm).weight.shape == (spec.d_model,)
        named += [*sublayer.inputs, sublayer.out]
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    assert len(named) == len(set(named))
    assert set(named) == linear


def test_norms_belong_to_one_sublayer_each(dense_dir: Path, model: PreTrainedModel) -> None:
    norms = [sublayer.norm for sublayer in layout_of(Model.open(dense_dir).spec).sublayers()]
    assert len(norms) == len(set(norms))
    layers = [module for stack in ("encoder", "decoder") for module in layers_of(model, stack)]
    inside = {id(m) for layer in layers for name, m in layer.named_modules() if name.endswith("layer_norm")}
    assert {id(model.get_submodule(name)) for name in norms} == inside


def test_what_is_left(dense_dir: Path) -> None:
    spec = Model.open(dense_dir).spec
    whole = shortened(spec, (1,))
    assert [layer.origin for layer in whole.decoder] == [1]
    assert shortened(whole, (0, 1)) == spec
    attention, ffn, *_, own, cross, last = layout_of(whole).sublayers()
    kept = {attention.out: (1,), ffn.out: (0, 3, 4), own.out: (), cross.out: (0, 2), last.out: ()}
    left = with_kept(whole, kept)
    assert (left.encoder[0].heads, left.encoder[0].ffn) == ((1,), 3)
    assert left.encoder[1:] == whole.encoder[1:]
    assert (left.decoder[0].self_heads, left.decoder[0].cross_heads, left.decoder[0].ffn) == ((), (0, 2), 0)
    assert {s.out: s.numbers for s in layout_of(left).sublayers() if s.out in kept and s.has_heads} == {
        name: numbers for name, numbers in kept.items() if name not in (ffn.out, last.out)
    }
    assert with_kept(left, {cross.out: (1,)}).decoder[0].cross_heads == (2,), "parts are counted among those left"


def test_recorded_states_are_transformers_hidden_states(model: PreTrainedModel, dense_dir: Path) -> None:
    feed = batch(Model.open(dense_dir).spec)
    targets = feed["input_ids"][:, :5]
    with (
        torch.no_grad(),
        recorded(layers_of(model, "encoder")) as encoder,
        recorded(layers_of(model, "decoder")) as decoder,
    ):
        outputs = model(**feed, decoder_input_ids=targets, output_hidden_states=True)
    assert len(decoder) == 2
    for ours, theirs in ((encoder, outputs.encoder_hidden_states), (decoder, outputs.decoder_hidden_states)):
        # transformers gives the embeddings first, and the last state after the final norm, where there is one.
        assert len(ours) == len(theirs) - 1
        for state, expected in zip(ours[:-1], theirs[1:-1], strict=True):
            torch.testing.assert_close(state, expected, rtol=0, atol=0)


def test_muon_takes_the_hidden_matrices_and_nothing_else(dense_dir: Path, model: PreTrainedModel) -> None:
    matrices, rest = parameter_groups(model, optimizer="muon", weight_decay=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)] for p in matrices["params"]}
    sublayers = layout_of(Model.open(dense_dir).spec).sublayers()
    assert found == {f"{name}.weight" for s in sublayers for name in (*s.inputs, s.out)}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {names[id(p)] for p in rest["params"]} == trained - found


def test_targets_begin_as_in_transformers(model: PreTrainedModel) -> None:
    """mBART turns its labels around, which is the same where they end with the start token; M2M100 says nothing."""
    config = model.config
    start, pad = config.decoder_start_token_id, config.pad_token_id
    labels = torch.tensor([[5, 6, 7, 8, start], [5, 6, start, IGNORED, IGNORED]])
    ours = shift_right(labels, config)
    assert ours.tolist() == [[start, 5, 6, 7, 8], [start, 5, 6, start, pad]]
    if config.model_type == "mbart":
        theirs = model.prepare_decoder_input_ids_from_labels(labels)
        assert theirs[:, :3].tolist() == ours[:, :3].tolist()
    elif config.model_type != "m2m_100":
        assert torch.equal(model.prepare_decoder_input_ids_from_labels(labels), ours)
