"""Greedy decoding with every processor, and beam search, against transformers' `generate`: alone and in company."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from server.engine.engine import Engine
from server.engine.sequence import EngineConfig, GenerationParameters, Sequence, Status
from tests.engine.generation_reference import Comparison, Reference, generate_reference
from tests.engine.reference import load_reference, random_sources
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


def liven(directory: Path, name: str, gain: float) -> Path:
    """Make answers end at all lengths: a louder row of the output matrix gives the end token a wider range."""
    tensors = load_file(directory / "model.safetensors")
    tensors[name][EOS_ID] *= gain
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


MODELS: dict[str, Callable[[Path], Path]] = {
    "t5": lambda path: liven(build_tiny_t5(path), "shared.weight", 3.0),
    "v1.1": lambda path: liven(build_tiny_t5(path, gated=True, tied=False, head_dim=4), "lm_head.weight", 3.0),
}


@pytest.fixture(scope="module", params=MODELS)
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODELS[request.param](tmp_path_factory.mktemp("decoding") / "model")


@pytest.fixture(scope="module")
def reference_model(model_dir: Path) -> PreTrainedModel:
    model = load_reference(model_dir)
    model.generation_config.max_new_tokens = None
    return model


@pytest.fixture(scope="module")
def engine(model_dir: Path) -> Engine:
    return Engine.load(model_dir, CONFIG)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone(engine: Engine, reference_model: PreTrainedModel, kind: str) -> None:
    comparison = Comparison()
    for source in random_sources(4, longest=20, seed=len(kind)):
        (sequence,) = engine.generate([source], KINDS[kind])
        comparison.check(sequence.hypotheses, generate_reference(reference_model, source, KINDS[kind]))
    assert comparison.undecided <= 1


Case = tuple[list[int], GenerationParameters, Reference]


def make_cases(model: PreTrainedModel, count: int, seed: int) -> list[Case]:
    """Sources with parameters of all kinds, and what transformers makes of them alone."""
    kinds = itertools.cycle(KINDS.values())
    return [
        (source, each, generate_reference(model, source, each))
        for source, each in zip(random_sources(count, longest=20, seed=seed), kinds, strict=False)
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
    comparison = run_mixed(engine, make_cases(reference_model, 75, seed=5), seed=6)
    assert comparison.compared > 50
    assert comparison.undecided <= 1


@pytest.mark.slow
def test_much_mixed_traffic(engine: Engine, reference_model: PreTrainedModel) -> None:
    cases = make_cases(reference_model, 1000, seed=7)
    comparison = run_mixed(engine, cases, seed=8)
    assert comparison.compared > 900
    assert comparison.undecided <= 10
    lengths = {len(reference.tokens[0]) for _, _, reference in cases}
    assert lengths == set(range(1, NEW_TOKENS + 1)), "answers end at all lengths"


def test_the_answers_are_of_interest(engine: Engine) -> None:
    sources = random_sources(24, longest=20)
    for kind in ("greedy", "four"):
        answers = [sequence.tokens for sequence in engine.generate(sources, KINDS[kind])]
        assert len({tuple(answer) for answer in answers}) > 12
        assert len({len(answer) for answer in answers}) >= 5


def test_scores_are_computed_in_float64_where_the_model_is(model_dir: Path) -> None:
    engine = Engine.load(model_dir, EngineConfig(dtype="float64", slots=4, max_source_tokens=20, max_new_tokens=20))
    model = load_reference(model_dir, torch.float64)
    model.generation_config.max_new_tokens = None
    comparison = Comparison()
    for source in random_sources(3, longest=20, seed=9):
        (sequence,) = engine.generate([source], BEAMS["four"])
        comparison.check(sequence.hypotheses, generate_reference(model, source, BEAMS["four"]))
    assert comparison.undecided == 0
