"""Greedy decoding with every processor, and beam search, against transformers' `generate`: alone and in company."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from model_store.model.model import Model
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.sequence import Sequence, Status
from tests.engine.generation_reference import Comparison, Reference, generate_reference
from tests.engine.reference import load_reference, random_sources
from tests.tiny_families import CASES, build_tiny
from tests.tiny_models import EOS_ID, build_tiny_t5

NEW_TOKENS = 12
CONFIG = EngineConfig(slots=9, max_source_tokens=20, max_new_tokens=20)


def parameters(**fields: object) -> GenerationParameters:
    return GenerationParameters(**({"max_new_tokens": NEW_TOKENS} | fields))  # type: ignore[arg-type]


SINGLE = {
    "greedy": parameters(),
    "repetition": parameters(repetition_penalty=1.7),
    "repetition, rewarded": parameters(repetition_penalty=0.6),
    "no token twice": parameters(no_repeat_ngram_size=1),
    "no pair twice": parameters(no_repeat_ngram_size=2),
    "no triple twice": parameters(no_repeat_ngram_size=3),
    "long enough": parameters(min_new_tokens=6),
    "bad words": parameters(bad_words=((5,), (7,), (EOS_ID,), (9, 10), (11,), (0, 3), (28, 28), (12, 13, 14))),
    "suppressed": parameters(suppress_tokens=(4, 6, 8, 20, 21), begin_suppress_tokens=(3, 5, 10, 11, 12, 28)),
    "forced": parameters(forced_bos_token_id=9, forced_eos_token_ids=(EOS_ID,)),
    "forced, then suppressed": parameters(forced_bos_token_id=9, begin_suppress_tokens=tuple(range(3, 24))),
    "one of several last": parameters(forced_eos_token_ids=(EOS_ID, 7)),
    "prefix": parameters(prefix_ids=(4, 5, 6)),
    "prefix with all": parameters(
        prefix_ids=(4, 5, 6, 5, 6),
        no_repeat_ngram_size=2,
        repetition_penalty=1.3,
        min_new_tokens=3,
        begin_suppress_tokens=(4, 5, 6, 7, 8),
        forced_bos_token_id=3,
    ),
}
BEAMS = {
    "two": parameters(num_beams=2),
    "four": parameters(num_beams=4, num_return_sequences=3),
    "as soon as there are enough": parameters(
        num_beams=4, early_stopping=True, length_penalty=2.0, num_return_sequences=4
    ),
    "to the very end": parameters(num_beams=3, early_stopping="never", length_penalty=0.6, num_return_sequences=2),
    "to the very end, short": parameters(num_beams=3, early_stopping="never", length_penalty=-1.0),
    "short": parameters(num_beams=5, length_penalty=-0.5, num_return_sequences=5),
    "as a summarizer": parameters(
        num_beams=4,
        forced_bos_token_id=9,
        forced_eos_token_ids=(EOS_ID,),
        no_repeat_ngram_size=3,
        min_new_tokens=5,
        length_penalty=2.0,
        early_stopping=True,
        num_return_sequences=4,
    ),
    "after a prefix": parameters(num_beams=4, prefix_ids=(4, 5, 6), repetition_penalty=1.5, no_repeat_ngram_size=2),
    "as a translator": parameters(
        num_beams=3,
        bad_words=((5,), (7,), (EOS_ID,), (9, 10), (11,)),
        suppress_tokens=(4, 6),
        forced_eos_token_ids=(EOS_ID,),
        renormalize_logits=True,
        num_return_sequences=3,
    ),
    "all of them": parameters(num_beams=6, num_return_sequences=6, length_penalty=0.0),
    "a few tokens": parameters(num_beams=3, max_new_tokens=2, num_return_sequences=3),
}
KINDS = SINGLE | BEAMS


def liven(directory: Path, name: str, end: int) -> Path:
    """Make answers end at all lengths: a louder row of the output matrix gives the end token a wider range."""
    tensors = load_file(directory / "model.safetensors")
    tensors[name][end] *= 3.0
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def build_t5(path: Path) -> Path:
    return liven(build_tiny_t5(path), "shared.weight", EOS_ID)


def build_v1_1(path: Path) -> Path:
    return liven(build_tiny_t5(path, gated=True, tied=False, head_dim=4), "lm_head.weight", EOS_ID)


def build_bart(path: Path) -> Path:
    return liven(build_tiny(CASES["bart, untied, scaled"], path, seed=1), "lm_head.weight", 2)


# How it is built, and the backend that runs it ("auto": the native one where there is one).
MODELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "t5": (build_t5, "auto"),
    "v1.1": (build_v1_1, "torch"),
    "bart": (build_bart, "auto"),
}
OTHERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "bart, torch": (build_bart, "torch"),
    **{
        name: (partial(build_tiny, CASES[name]), "auto")
        for name in ("bart", "mbart", "marian", "pegasus", "m2m_100", "mt5", "umt5")
    },
}


@pytest.fixture(scope="module", params=[*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def model_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def model_dir(model_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build, _ = (MODELS | OTHERS)[model_name]
    return build(tmp_path_factory.mktemp("decoding") / "model")


@pytest.fixture(scope="module")
def reference_model(model_dir: Path) -> PreTrainedModel:
    return load_model(model_dir)


@pytest.fixture(scope="module")
def engine(model_dir: Path, model_name: str) -> Engine:
    return Engine.load(Model.open(model_dir), replace(CONFIG, backend=(MODELS | OTHERS)[model_name][1]))


def load_model(directory: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32).eval()
    model.generation_config.max_new_tokens = None
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone(engine: Engine, reference_model: PreTrainedModel, kind: str) -> None:
    comparison = Comparison()
    for source in sources_for(engine, 4, seed=len(kind)):
        (sequence,) = engine.generate([source], KINDS[kind])
        comparison.check(sequence.hypotheses, generate_reference(reference_model, source, KINDS[kind]))
    assert comparison.undecided <= 1


Case = tuple[list[int], GenerationParameters, Reference]


def sources_for(engine: Engine, count: int, seed: int) -> list[list[int]]:
    """Random sources with the model's own end token: T5's is what pads others, and pads are counted by no position."""
    return [[*source[:-1], engine.spec.eos_id] for source in random_sources(count, longest=20, seed=seed)]


def make_cases(engine: Engine, model: PreTrainedModel, count: int, seed: int) -> list[Case]:
    """Sources with parameters of all kinds, and what transformers makes of them alone."""
    kinds = itertools.cycle(KINDS.values())
    return [
        (source, each, generate_reference(model, source, each))
        for source, each in zip(sources_for(engine, count, seed), kinds, strict=False)
    ]


def run_mixed(engine: Engine, cases: list[Case], seed: int) -> Comparison:
    """All cases in one engine, arriving in any order at any step, some cancelled on the way."""
    generator, comparison = random.Random(seed), Comparison()
    arrivals, live, cancelled = list(range(len(cases))), {}, 0
    generator.shuffle(arrivals)
    while arrivals or not engine.idle:
        for _ in range(min(len(arrivals), generator.choice((0, 0, 1, 2, 5)))):
            i = arrivals.pop()
            live[i] = Sequence(id=i, source_ids=cases[i][0], parameters=cases[i][1])
            engine.add(live[i])
        if live and generator.random() < 0.05:
            cancelled += engine.cancel(generator.choice(list(live)))
        engine.step()
        engine.check_integrity()
    for i, sequence in live.items():
        if sequence.status is not Status.CANCELLED:
            assert sequence.status is Status.FINISHED
            comparison.check(sequence.hypotheses, cases[i][2])
    assert cancelled + comparison.compared == len(cases)
    return comparison


def test_mixed_traffic(engine: Engine, reference_model: PreTrainedModel) -> None:
    comparison = run_mixed(engine, make_cases(engine, reference_model, 75, seed=5), seed=6)
    assert comparison.compared > 50
    assert comparison.undecided <= 1


@pytest.mark.slow
def test_much_mixed_traffic(engine: Engine, reference_model: PreTrainedModel) -> None:
    cases = make_cases(engine, reference_model, 500, seed=7)
    comparison = run_mixed(engine, cases, seed=8)
    assert comparison.compared > 450
    assert comparison.undecided <= 5


@pytest.mark.parametrize("build", [build_t5, build_v1_1])
def test_the_answers_are_of_interest(build: Callable[[Path], Path], tmp_path: Path) -> None:
    engine, sources = Engine.load(Model.open(build(tmp_path / "model")), CONFIG), random_sources(40, longest=20)
    for kind in ("greedy", "four"):
        answers = [sequence.tokens for sequence in engine.generate(sources, KINDS[kind])]
        assert len({tuple(answer) for answer in answers}) > 10
        assert len({len(answer) for answer in answers}) >= 5


def test_scores_are_computed_in_float64_where_the_model_is(tmp_path: Path) -> None:
    directory = build_t5(tmp_path / "model")
    engine = Engine.load(Model.open(directory), replace(CONFIG, dtype="float64", backend="torch"))
    model, comparison = load_reference(directory, torch.float64), Comparison()
    for source in random_sources(5, longest=20, seed=9):
        (sequence,) = engine.generate([source], BEAMS["four"])
        comparison.check(sequence.hypotheses, generate_reference(model, source, BEAMS["four"]))
    assert comparison.undecided == 0
