"""Compaction is exact: masked student, compact model, what is read back and what is exported all compute the same."""

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from model_store.model.config import layout_of, spec_of
from model_store.model.layout import HIDDEN
from model_store.model.model import Model
from model_store.model.spec import ModelSpec, shortened
from nash.modeling.compact import fill
from nash.modeling.folders import load_dense, save_model
from nash.modeling.layers import layers_of
from nash.structure.compaction import compact, shorten_decoder
from nash.structure.masking import HardenedGates
from server.engine.capabilities import why_not_native
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.native.backend import NativeBackend
from tests.engine.family_reference import STEPS, backend_logits, check, expected_logits, load_backend, targets, texts
from tests.nash.pruned_families import (
    FAMILIES,
    NEW_TOKENS,
    Pruned,
    assert_same,
    assert_same_answers,
    build,
    decided,
    decisions,
    every_form,
    float64,
    generated,
    logits,
    read,
    shapes,
)
from tests.tiny_families import CASES, Case

QUICK = settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
WIDE = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def dense_dir(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense model; read only."""
    return build(case, tmp_path_factory.mktemp("dense") / "model")


def check_random_model(data: st.DataObject, case: Case) -> None:
    """Logits and answers of all forms of one pruned model, all drawn."""
    with TemporaryDirectory() as name, torch.random.fork_rng():
        folder = Path(name)
        dense_dir = build(data.draw(shapes(case)), folder / "teacher", seed=data.draw(st.integers(0, 999)))
        spec = Model.open(dense_dir).spec
        kept_layers, hardened = data.draw(decisions(spec))
        check_forms(Pruned(dense_dir=dense_dir, kept_layers=kept_layers, hardened=hardened), folder)


def check_forms(pruned: Pruned, folder: Path) -> None:
    spec, forms = pruned.dense, every_form(pruned, folder)
    _, oracle = next(forms)
    scores, greedy, beams = logits(oracle, spec), generated(oracle, spec), generated(oracle, spec, num_beams=3)
    for what, model in forms:
        assert_same(logits(model, spec), scores, what)
        assert_same_answers(generated(model, spec), greedy, what)
        if what in ("read back", "exported"):
            assert_same_answers(generated(model, spec, num_beams=3), beams, what)


@QUICK
@given(data=st.data())
def test_every_form_computes_the_same(case: Case, data: st.DataObject) -> None:
    check_random_model(data, case)


@pytest.mark.slow
@WIDE
@given(data=st.data())
def test_every_form_computes_the_same_far_and_wide(case: Case, data: st.DataObject) -> None:
    check_random_model(data, case)


def cut(spec: ModelSpec, kept_layers: tuple[int, ...], gone: Mapping[tuple[str, int, str], object]) -> HardenedGates:
    """Half of every sublayer's parts, and nothing of those that are `gone`."""
    kept = {}
    for s in layout_of(shortened(spec, kept_layers)).sublayers():
        half = [(p + s.layer) % 2 == 0 for p in range(s.parts)]
        kept[s.out] = [False] * s.parts if (s.stack, s.layer, s.kind) in gone else half
    return decided(spec, kept_layers, kept, seed=0)


Cut = Callable[[ModelSpec, tuple[int, ...]], HardenedGates]


def hollow(spec: ModelSpec, kept_layers: tuple[int, ...]) -> HardenedGates:
    sublayers = layout_of(shortened(spec, kept_layers)).sublayers()
    return cut(spec, kept_layers, dict.fromkeys((s.stack, s.layer, s.kind) for s in sublayers))


def ragged(spec: ModelSpec, kept_layers: tuple[int, ...]) -> HardenedGates:
    """Each kind of sublayer absent somewhere, the places of T5's bias tables and of the cache's length among them."""
    gone = [("encoder", 0, "self_attention"), ("encoder", 1, "self_attention"), ("encoder", 1, "feed_forward")]
    gone += [("decoder", 0, "self_attention"), ("decoder", 1, "cross_attention"), ("decoder", 1, "feed_forward")]
    return cut(spec, kept_layers, dict.fromkeys(gone))


def narrow(spec: ModelSpec, kept_layers: tuple[int, ...]) -> HardenedGates:
    """A ragged cut that leaves hidden states of an odd width."""
    left = ragged(spec, kept_layers)
    kept = {name: bits.tolist() for name, bits in left.kept.items()}
    kept[HIDDEN] = [i % 3 != 1 for i in range(spec.d_model)]
    kept[HIDDEN][0] = sum(kept[HIDDEN]) % 2 == 0
    return decided(spec, kept_layers, kept, seed=0)


@pytest.mark.parametrize(("how", "kept_layers"), [(ragged, (0, 1)), (hollow, (0, 1)), (ragged, (1,))])
def test_empty_sublayers(dense_dir: Path, how: Cut, kept_layers: tuple[int, ...], tmp_path: Path) -> None:
    hardened = how(Model.open(dense_dir).spec, kept_layers)
    check_forms(Pruned(dense_dir=dense_dir, kept_layers=kept_layers, hardened=hardened), tmp_path)


@pytest.fixture
def _double() -> Iterator[None]:
    with float64():
        yield


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("how", [ragged, narrow])
def test_in_float64_there_is_no_excuse(dense_dir: Path, how: Cut, tmp_path: Path) -> None:
    pruned = Pruned(dense_dir=dense_dir, kept_layers=(0, 1), hardened=how(Model.open(dense_dir).spec, (0, 1)))
    spec = pruned.dense
    forms = every_form(pruned, tmp_path)
    expected = logits(next(forms)[1], spec)
    assert expected.dtype == torch.float64
    for what, model in forms:
        assert_same(logits(model, spec), expected, what)


def check_engine(dense_dir: Path, tmp_path: Path, backend: str, how: Cut = ragged) -> None:
    """The engine computes what the compact model of a cut does in transformers, and says the same."""
    config = EngineConfig(slots=2, max_source_tokens=16, max_new_tokens=NEW_TOKENS, backend=backend)
    if backend == "native" and (obstacle := why_not_native(config)):
        pytest.skip(obstacle)
    spec = Model.open(dense_dir).spec
    pruned = Pruned(dense_dir=dense_dir, kept_layers=(0, 1), hardened=how(spec, (0, 1)))
    save_model(pruned.compact(), dense_dir, tmp_path / "compact", torch.float32)
    model, compact_model = read(tmp_path / "compact"), Model.open(tmp_path / "compact")
    sources, wanted = texts(spec, [7, 12, 2]), targets(spec, 3)
    if backend == "native":
        wide = EngineConfig(slots=3, max_source_tokens=70, max_new_tokens=STEPS)
        ours = backend_logits(NativeBackend.load(compact_model, wide), sources, wanted)
    else:
        ours = backend_logits(load_backend(tmp_path / "compact", "float32", slots=3), sources, wanted)
    for source, target, scores in zip(sources, wanted, ours, strict=True):
        check(scores, expected_logits(model, source, target), 1e-5)
    engine = Engine.load(compact_model, config)
    parameters = GenerationParameters(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
    for source, sequence in zip(sources, engine.generate(sources, parameters), strict=True):
        answer = model.generate(
            torch.tensor([source]), min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, do_sample=False
        )
        assert answer[0, 1:].tolist() == sequence.tokens


@pytest.mark.parametrize("how", [ragged, narrow])
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_the_engine_answers_as_the_compact_model(dense_dir: Path, backend: str, how: Cut, tmp_path: Path) -> None:
    check_engine(dense_dir, tmp_path, backend, how)


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("name", ["madlad", "aya"])
def test_t5_by_other_names(name: str, backend: str, tmp_path: Path) -> None:
    """Configurations of before transformers 5, large vocabularies, an output matrix of its own."""
    dense_dir = build(CASES[name], tmp_path / "dense")
    spec = Model.open(dense_dir).spec
    check_forms(Pruned(dense_dir=dense_dir, kept_layers=(1,), hardened=ragged(spec, (1,))), tmp_path / "forms")
    check_engine(dense_dir, tmp_path, backend)


@pytest.mark.parametrize("kept_layers", [(0,), (1,), (0, 1)])
def test_a_shortened_decoder_is_the_teacher_without_the_layers_between(
    dense_dir: Path, kept_layers: tuple[int, ...]
) -> None:
    """The oracle takes the teacher's layers out of its list, and moves T5's bias table to the first one left."""
    teacher, spec = load_dense(Model.open(dense_dir)).eval(), Model.open(dense_dir).spec
    expected = copy.deepcopy(teacher)
    layers: Any = layers_of(expected, "decoder")
    left: Any = nn.ModuleList(layers[i] for i in kept_layers)
    if layout_of(spec).bias_table("decoder") is not None:
        first = left[0].layer[0].SelfAttention
        first.relative_attention_bias = layers[0].layer[0].SelfAttention.relative_attention_bias
        first.has_relative_attention_bias = True
    stack = expected.get_decoder()
    setattr(stack, next(name for name, child in stack.named_children() if child is layers), left)
    student = shorten_decoder(teacher, kept_layers).eval()
    assert torch.equal(logits(student, spec), logits(expected, spec))
    assert spec_of(student.config.to_dict()).dense_decoder_layers == len(kept_layers)
    assert Model.open(dense_dir).spec == spec_of(teacher.config.to_dict()), "the teacher itself was changed"


def tied(model: nn.Module) -> set[frozenset[str]]:
    """The names that are one matrix."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


def test_what_is_tied_stays_tied_and_nothing_else_is(dense_dir: Path, tmp_path: Path) -> None:
    teacher, spec = load_dense(Model.open(dense_dir)), Model.open(dense_dir).spec
    student = shorten_decoder(teacher, (0, 1))
    compacted = compact(student, spec, (0, 1), ragged(spec, (0, 1)))
    save_model(compacted, dense_dir, tmp_path / "c", torch.float32)
    back = read(tmp_path / "c")
    assert tied(student) == tied(compacted) == tied(back) == tied(teacher)
    assert spec_of(back.config.to_dict()).scale_logits == spec.scale_logits
    for name in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(getattr(back, name)().weight, getattr(teacher, name)().weight)


def test_a_compact_model_learns(dense_dir: Path) -> None:
    """Every parameter has a gradient but the tables that are never trained, and a small step lowers the loss."""
    spec = Model.open(dense_dir).spec
    model = compact(
        shorten_decoder(load_dense(Model.open(dense_dir)), (0, 1)), spec, (0, 1), ragged(spec, (0, 1))
    ).eval()
    ids = torch.randint(3, 30, (2, 5), generator=torch.Generator().manual_seed(0))
    before = model(input_ids=ids, labels=ids).loss
    before.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all("embed_positions" in name for name, p in model.named_parameters() if not p.requires_grad)
    unused = {name for name, p in trained.items() if p.grad is None}
    assert not {name for name in unused if "shared" not in name}, "untied BART keeps a shared table that nothing reads"
    length = sum(float(p.grad.square().sum()) for p in trained.values() if p.grad is not None)
    with torch.no_grad():
        for p in trained.values():
            if p.grad is not None:
                p -= 0.01 * p.grad / length
    after = model(input_ids=ids, labels=ids).loss
    assert after.item() == pytest.approx(before.item() - 0.01, abs=0.005)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_cached_generation_equals_uncached(dense_dir: Path, num_beams: int) -> None:
    spec = Model.open(dense_dir).spec
    model = compact(
        shorten_decoder(load_dense(Model.open(dense_dir)), (0, 1)), spec, (0, 1), ragged(spec, (0, 1))
    ).eval()
    cached, uncached = (generated(model, spec, num_beams=num_beams, use_cache=cache) for cache in (True, False))
    assert_same_answers(cached, uncached)
    assert uncached.margin > 0


def test_the_compact_model_says_what_it_is(case: Case, dense_dir: Path) -> None:
    dense = Model.open(dense_dir).spec
    model = compact(shorten_decoder(load_dense(Model.open(dense_dir)), (1,)), dense, (1,), ragged(dense, (1,)))
    spec = spec_of(model.config.to_dict())
    assert [layer.heads for layer in spec.encoder] == [(), (), (0, 2)][: len(spec.encoder)]
    assert [layer.ffn for layer in spec.encoder] == [21, 0, 21][: len(spec.encoder)]
    assert [(layer.origin, layer.self_heads, layer.cross_heads) for layer in spec.decoder] == [(1, (), (0, 2))]
    assert (spec.dense_encoder_layers, spec.dense_decoder_layers) == (len(spec.encoder), 2)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wanted, allowed = dict(layout_of(spec).shapes()), dict(layout_of(spec).optional_shapes())
    assert {name: shape for name, shape in shapes.items() if name in wanted} == wanted
    assert all(allowed[name] == shape for name, shape in shapes.items() if name not in wanted)
    assert type(model).__name__ == "Nash" + case.model.__name__
    assert model.generation_config.decoder_start_token_id == dense.decoder_start_id


def test_tensors_of_another_model_are_not_filled_in(dense_dir: Path) -> None:
    model = load_dense(Model.open(dense_dir))
    state = model.state_dict()
    name = next(iter(state))
    with pytest.raises(ValueError, match=r"missing or unknown: \['more'\]"):
        fill(model, {**state, "more": state[name]})
    with pytest.raises(ValueError, match=f"{name} has shape"):
        fill(model, {**state, name: state[name][1:]})
