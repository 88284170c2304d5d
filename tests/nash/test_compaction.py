"""Compaction is exact: masked student, compact model, and the compact model read back all compute the same."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration
from transformers.models.t5 import modeling_t5

import nash  # noqa: F401 - makes the Auto classes know compact models
from model_store.spec import ModelSpec
from nash.compaction import compact, shorten_decoder
from nash.masking import HardenedGates, masked
from nash.modeling_nash import NashT5ForConditionalGeneration
from nash.models import load_dense, read_spec, save_model
from nash.parts import parts_of, shortened
from server.engine.engine import Engine
from server.engine.sequence import EngineConfig, GenerationParameters
from tests.engine.reference import Answer, NearTies, random_sources, reference_answers
from tests.tiny_models import PAD_ID, VOCABULARY, build_tiny_t5

LAYERS, HEADS, UNITS = 3, 3, 6
NEW_TOKENS = 8
SHAPES: dict[str, Callable[[Path], Path]] = {
    "t5": partial(build_tiny_t5, d_model=16, heads=HEADS, head_dim=4, d_ff=UNITS, encoder_layers=LAYERS),
    "v1.1": partial(
        build_tiny_t5, d_model=16, heads=HEADS, head_dim=8, d_ff=UNITS, encoder_layers=LAYERS, gated=True, tied=False
    ),
}

Bits = tuple[tuple[bool, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A dense model in every form that is asked for."""

    directory: Path
    spec: ModelSpec
    model: T5ForConditionalGeneration


@pytest.fixture(scope="module", params=SHAPES)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    directory = SHAPES[request.param](tmp_path_factory.mktemp(request.param) / "model")
    return Teacher(directory=directory, spec=read_spec(directory), model=load_dense(directory).eval())


def hardened_gates(heads: Bits, units: Bits, seed: int = 0) -> HardenedGates:
    """Random values in (0.1, 1] under a given decision."""
    generator = torch.Generator().manual_seed(seed)

    kept = {f"encoder.block.{i}.layer.0.SelfAttention.o": torch.tensor(bits) for i, bits in enumerate(heads)}
    kept |= {f"encoder.block.{i}.layer.1.DenseReluDense.wo": torch.tensor(bits) for i, bits in enumerate(units)}
    dtype = torch.get_default_dtype()
    values = {name: 1 - 0.9 * torch.rand(len(bits), generator=generator, dtype=dtype) for name, bits in kept.items()}
    return HardenedGates(values=values, kept=kept)


def rows(*layers: str) -> Bits:
    """ "101" keeps the first and the third."""
    return tuple(tuple(bit == "1" for bit in layer) for layer in layers)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """Scores of a padded batch of unequal sources and targets."""
    generator = torch.Generator().manual_seed(1)
    sources = torch.randint(3, len(VOCABULARY), (3, 9), generator=generator)
    mask = torch.ones_like(sources)
    mask[1, 4:], mask[2, 1:] = 0, 0
    targets = torch.randint(3, len(VOCABULARY), (3, 6), generator=generator)
    output: Tensor = model(
        input_ids=sources.masked_fill(mask == 0, PAD_ID), attention_mask=mask, decoder_input_ids=targets
    ).logits
    return output


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    difference = float((found - expected).abs().max())
    assert difference <= tolerance * max(1.0, float(expected.abs().max())), difference


def zeroed(student: T5ForConditionalGeneration, hardened: HardenedGates) -> T5ForConditionalGeneration:
    """A dense model whose output matrices hold what the gates leave: an oracle without hooks and without cuts."""
    model = copy.deepcopy(student)
    with torch.no_grad():
        for name, values in hardened.mask().items():
            weight = model.get_submodule(name).weight
            weight.mul_(values.repeat_interleave(weight.shape[1] // len(values)))
    return model


def check_all_forms(teacher: Teacher, kept_layers: tuple[int, ...], hardened: HardenedGates, directory: Path) -> None:
    """Logits and greedy answers of every form of one pruned model, the engine's included."""
    student = shorten_decoder(teacher.model, kept_layers).eval()
    compacted = compact(student, teacher.spec, kept_layers, hardened).eval()
    save_model(compacted, teacher.directory, directory, torch.float32)
    read_back = AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
    assert isinstance(read_back, NashT5ForConditionalGeneration)
    reference = zeroed(student, hardened)
    expected = logits(reference)
    with masked(student, parts_of(shortened(teacher.spec, kept_layers)), hardened.mask()):
        assert_same(logits(student), expected)
    assert_same(logits(compacted), expected)
    assert torch.equal(logits(read_back), logits(compacted))

    sources = random_sources(2, longest=9, seed=2)
    answers = reference_answers(reference, sources, NEW_TOKENS)
    with masked(student, parts_of(shortened(teacher.spec, kept_layers)), hardened.mask()):
        check_answers(reference_answers(student, sources, NEW_TOKENS), answers)
    check_answers(reference_answers(read_back, sources, NEW_TOKENS), answers)
    engine = Engine.load(directory, EngineConfig(slots=2, max_source_tokens=16, max_new_tokens=NEW_TOKENS))
    ties = NearTies()
    generated = engine.generate(sources, GenerationParameters(max_new_tokens=NEW_TOKENS))
    for sequence, answer in zip(generated, answers, strict=True):
        ties.check(sequence.tokens, answer)


def check_answers(found: list[Answer], expected: list[Answer]) -> None:
    ties = NearTies()
    for answer, reference in zip(found, expected, strict=True):
        ties.check(answer.tokens, reference)


def bits(width: int) -> st.SearchStrategy[Bits]:
    layer = st.lists(st.booleans(), min_size=width, max_size=width).map(tuple)
    return st.lists(layer, min_size=LAYERS, max_size=LAYERS).map(tuple)


KEPT_LAYERS = st.sampled_from([(0,), (2,), (0, 2), (1, 2), (0, 1, 2)])


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(heads=bits(HEADS), units=bits(UNITS), kept_layers=KEPT_LAYERS, seed=st.integers(0, 99))
def test_every_form_computes_the_same(
    teacher: Teacher, tmp_path: Path, heads: Bits, units: Bits, kept_layers: tuple[int, ...], seed: int
) -> None:
    check_all_forms(teacher, kept_layers, hardened_gates(heads, units, seed), tmp_path / "compact")


EMPTY = {
    "no heads in the first layer": (rows("000", "101", "010"), rows("111111", "010000", "001101")),
    "no heads at all": (rows("000", "000", "000"), rows("111111", "010000", "001101")),
    "no units in a layer": (rows("110", "101", "010"), rows("111111", "000000", "001101")),
    "no units at all": (rows("110", "101", "010"), rows("000000", "000000", "000000")),
    "everything closed": (rows("000", "000", "000"), rows("000000", "000000", "000000")),
    "a layer with nothing first": (rows("000", "111", "111"), rows("000000", "111111", "111111")),
    "everything open": (rows("111", "111", "111"), rows("111111", "111111", "111111")),
}


@pytest.mark.parametrize("case", EMPTY)
def test_empty_sublayers(teacher: Teacher, case: str, tmp_path: Path) -> None:
    check_all_forms(teacher, (0, 2), hardened_gates(*EMPTY[case]), tmp_path / "compact")


@pytest.fixture
def _double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything is built in float64, the norms too, which transformers computes in float32 at most."""
    monkeypatch.setattr(modeling_t5, "T5LayerNorm", nn.RMSNorm)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("shape", SHAPES)
def test_in_float64_there_is_no_excuse(shape: str, tmp_path: Path) -> None:
    directory = SHAPES[shape](tmp_path / "model")
    teacher = T5ForConditionalGeneration.from_pretrained(directory, dtype=torch.float64).eval()
    student = shorten_decoder(teacher, (0, 2)).eval()
    hardened = hardened_gates(rows("000", "101", "010"), rows("111111", "000000", "001101"))
    compacted = compact(student, read_spec(directory), (0, 2), hardened).eval()
    expected = logits(zeroed(student, hardened))
    assert expected.dtype == torch.float64
    assert_same(logits(compacted), expected, 1e-10)
    with masked(student, parts_of(shortened(read_spec(directory), (0, 2))), hardened.mask()):
        assert_same(logits(student), expected, 1e-10)


@pytest.mark.parametrize("kept_layers", [(0,), (1,), (0, 2), (1, 2), (0, 1, 2)])
def test_a_shortened_decoder_is_the_teacher_without_the_layers_between(
    teacher: Teacher, kept_layers: tuple[int, ...]
) -> None:
    """The oracle takes the teacher's blocks out of its list, and moves the stack's bias table to the first one left."""
    expected = copy.deepcopy(teacher.model)
    table = expected.decoder.block[0].layer[0].SelfAttention.relative_attention_bias
    expected.decoder.block = nn.ModuleList(expected.decoder.block[i] for i in kept_layers)
    first = expected.decoder.block[0].layer[0].SelfAttention
    first.relative_attention_bias, first.has_relative_attention_bias = table, True
    student = shorten_decoder(teacher.model, kept_layers).eval()
    assert torch.equal(logits(student), logits(expected))
    assert student.config.num_decoder_layers == len(kept_layers)
    assert teacher.model.config.num_decoder_layers == 3, "the teacher itself was changed"


def test_a_head_of_its_own_survives(teacher: Teacher, tmp_path: Path) -> None:
    """transformers ties a new T5's head to the embedding, whatever its configuration says."""
    student = shorten_decoder(teacher.model, (0, 2))
    hardened = hardened_gates(*EMPTY["everything open"])
    save_model(compact(student, teacher.spec, (0, 2), hardened), teacher.directory, tmp_path / "c", torch.float32)
    read_back = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "c")
    untied = teacher.spec.gated_ffn
    assert torch.equal(read_back.shared.weight, teacher.model.shared.weight)
    assert torch.equal(read_back.lm_head.weight, teacher.model.lm_head.weight)
    assert torch.equal(read_back.lm_head.weight, read_back.shared.weight) != untied
    assert read_spec(tmp_path / "c").scale_logits != untied


def test_cached_generation_equals_uncached(teacher: Teacher) -> None:
    """In one batch of unequal sources; every step's scores, not the tokens alone."""
    student = shorten_decoder(teacher.model, (0, 2))
    hardened = hardened_gates(*EMPTY["no heads in the first layer"])
    model = compact(student, teacher.spec, (0, 2), hardened).eval()
    sources = random_sources(3, longest=8, seed=4)
    width = max(map(len, sources))
    batch = {
        "input_ids": torch.tensor([s + [PAD_ID] * (width - len(s)) for s in sources]),
        "attention_mask": torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sources]),
    }
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    cached, uncached = (
        model.generate(**batch, **settings, use_cache=cache, output_logits=True, return_dict_in_generate=True)
        for cache in (True, False)
    )
    assert torch.equal(cached.sequences, uncached.sequences)
    assert_same(torch.stack(cached.logits), torch.stack(uncached.logits))


def test_the_compact_model_says_what_it_is(teacher: Teacher) -> None:
    kept_layers, hardened = (0, 2), hardened_gates(rows("011", "111", "000"), rows("111111", "010101", "000000"))
    model = compact(shorten_decoder(teacher.model, kept_layers), teacher.spec, kept_layers, hardened)
    spec = ModelSpec.from_config(model.config.to_dict())
    assert [layer.heads for layer in spec.encoder] == [(1, 2), (0, 1, 2), ()]
    assert [layer.ffn for layer in spec.encoder] == [6, 3, 0]
    assert [layer.origin for layer in spec.decoder] == [0, 2]
    assert (spec.dense_encoder_layers, spec.dense_decoder_layers) == (3, 3)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    aliases = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    assert {name: shape for name, shape in shapes.items() if name not in aliases} == dict(spec.tensor_shapes())
    assert model.generation_config.max_new_tokens == teacher.model.generation_config.max_new_tokens
