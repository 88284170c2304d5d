"""Greedy tokens against transformers' `generate`: alone, in batches, and with sequences joining and leaving."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.results import FinishReason
from server.engine.sequence import Sequence, Status
from tests.engine.compact import hollow, ragged, shortened, write_compact, write_zeroed
from tests.engine.reference import (
    Answer,
    NearTies,
    load_reference,
    random_sources,
    reference_answers,
    reference_logits,
)

NEW_TOKENS = 20
CONFIG = EngineConfig(slots=5, max_source_tokens=33, max_new_tokens=NEW_TOKENS)
PARAMETERS = GenerationParameters(max_new_tokens=NEW_TOKENS)
SOURCES = random_sources(24, longest=33)


@pytest.fixture(scope="module")
def answers(dense_dir: Path) -> list[Answer]:
    return reference_answers(load_reference(dense_dir), SOURCES, NEW_TOKENS, batch=8)


def test_alone_and_in_full_batches(dense_dir: Path, answers: list[Answer]) -> None:
    engine, ties = Engine.load(Model.open(dense_dir), CONFIG), NearTies()
    for sequence, answer in zip(engine.generate(SOURCES, PARAMETERS), answers, strict=True):
        ties.check(sequence.tokens, answer)
    for source, answer in itertools.islice(zip(SOURCES, answers, strict=True), 8):
        ties.check(engine.generate([source], PARAMETERS)[0].tokens, answer)
    assert ties.compared == 32
    assert ties.undecided <= 1
    assert len({tuple(answer.tokens) for answer in answers}) > 5, "the model says nothing of interest"


@pytest.mark.parametrize("seed", range(3))
def test_joining_and_leaving_at_random_steps(dense_dir: Path, answers: list[Answer], seed: int) -> None:
    config = replace(CONFIG, ahead_s=(0.0, CONFIG.ahead_s, 60.0)[seed])
    engine, ties, generator = Engine.load(Model.open(dense_dir), config), NearTies(), random.Random(seed)
    arrivals, live, cancelled = list(range(len(SOURCES))), {}, 0
    generator.shuffle(arrivals)
    while arrivals or not engine.idle:
        for _ in range(min(len(arrivals), generator.choice((0, 0, 0, 1, 2, 6)))):
            i = arrivals.pop()
            live[i] = Sequence(
                id=i,
                source_ids=SOURCES[i],
                parameters=GenerationParameters(max_new_tokens=generator.randint(1, NEW_TOKENS)),
            )
            engine.add(live[i])
        if generator.random() < 0.2 and not engine.idle:
            cancelled += engine.cancel(generator.choice(list(live)))
        idle, events = engine.idle, engine.step()
        assert len(events) == (0 if idle else engine.step_stats.batch_size * engine.step_stats.steps)
        engine.check_integrity()
    assert cancelled
    for i, sequence in live.items():
        wanted = sequence.parameters.max_new_tokens
        if sequence.status is Status.CANCELLED:
            wanted = len(sequence.tokens)
        else:
            assert sequence.status is Status.FINISHED
        expected = Answer(tokens=answers[i].tokens[:wanted], margins=answers[i].margins[:wanted])
        ties.check(sequence.tokens, expected)
    assert ties.undecided <= 1


@pytest.mark.parametrize("cut", [ragged, shortened, hollow])
def test_a_compact_model_answers_as_the_dense_one_with_zeroed_parts(
    t5_dir: Path, cut: Callable[[ModelSpec], ModelSpec], tmp_path: Path
) -> None:
    spec = cut(Model.open(t5_dir).spec)
    zeroed = load_reference(write_zeroed(t5_dir, spec, tmp_path / "zeroed"))
    engine = Engine.load(Model.open(write_compact(t5_dir, spec, tmp_path / "compact")), CONFIG)
    ties = NearTies()
    references = reference_answers(zeroed, SOURCES[:12], NEW_TOKENS, batch=6)
    for sequence, answer in zip(engine.generate(SOURCES[:12], PARAMETERS), references, strict=True):
        ties.check(sequence.tokens, answer)
    assert ties.undecided <= 1


def test_an_answer_ends_at_the_end_token_or_at_its_length(t5_dir: Path) -> None:
    engine = Engine.load(Model.open(t5_dir), CONFIG)
    sequences = engine.generate(SOURCES, PARAMETERS)
    ended = [s for s in sequences if s.finish_reason is FinishReason.EOS]
    cut = [s for s in sequences if s.finish_reason is FinishReason.LENGTH]
    assert ended
    assert cut
    assert len(ended) + len(cut) == len(sequences)
    assert all(s.tokens.index(engine.spec.eos_id) == len(s.tokens) - 1 for s in ended)
    assert all(len(s.tokens) == NEW_TOKENS and engine.spec.eos_id not in s.tokens for s in cut)
    forced = GenerationParameters(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    for sequence, free in zip(engine.generate(SOURCES, forced), sequences, strict=True):
        assert len(sequence.tokens) == NEW_TOKENS
        assert sequence.tokens[: len(free.tokens)] == free.tokens


def test_logprobs_are_those_of_the_reference(t5_dir: Path) -> None:
    wanting = GenerationParameters(max_new_tokens=8, logprobs=True, ignore_eos=True)
    plain = GenerationParameters(max_new_tokens=8, ignore_eos=True)
    engine, model = Engine.load(Model.open(t5_dir), CONFIG), load_reference(t5_dir)
    with_logprobs = Sequence(id=1, source_ids=SOURCES[0], parameters=wanting)
    without = Sequence(id=2, source_ids=SOURCES[1], parameters=plain)
    engine.add(with_logprobs)
    engine.add(without)
    events = [event for _ in range(8) for event in engine.step()]
    logprobs = reference_logits(model, SOURCES[0], [0, *with_logprobs.tokens[:-1]]).log_softmax(-1)
    expected = [logprobs[i, token].item() for i, token in enumerate(with_logprobs.tokens)]
    assert with_logprobs.logprobs == pytest.approx(expected, abs=1e-5)
    assert [e.logprob for e in events if e.sequence_id == 1] == with_logprobs.logprobs
    assert without.logprobs == []
    assert all(e.logprob is None for e in events if e.sequence_id == 2)
