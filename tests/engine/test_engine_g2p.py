"""The shipped model on words that it has not seen: tokens are those of transformers' `generate`."""

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from server.engine.engine import Engine
from server.engine.sequence import EngineConfig, GenerationParameters, Sequence
from tests.engine.reference import Answer, NearTies, load_reference, reference_answers

MODEL = Path(__file__).parents[2] / "examples" / "g2p" / "model"
WORDS = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split()
PARAMETERS = GenerationParameters(max_new_tokens=32)


@pytest.fixture(scope="module")
def sources() -> list[list[int]]:
    source_ids: list[list[int]] = AutoTokenizer.from_pretrained(MODEL)(WORDS).input_ids
    return source_ids


@pytest.fixture(scope="module")
def answers(sources: list[list[int]]) -> list[Answer]:
    return reference_answers(load_reference(MODEL), sources, PARAMETERS.max_new_tokens, batch=35)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(MODEL, EngineConfig(slots=12, max_source_tokens=40, max_new_tokens=32))


def test_each_word_alone(engine: Engine, sources: list[list[int]], answers: list[Answer]) -> None:
    ties = NearTies()
    for source, answer in zip(sources, answers, strict=True):
        ties.check(engine.generate([source], PARAMETERS)[0].tokens, answer)
    assert ties.compared == len(WORDS)
    assert ties.undecided <= 2


def test_words_that_join_and_leave_a_running_batch(
    engine: Engine, sources: list[list[int]], answers: list[Answer]
) -> None:
    ties, generator = NearTies(), random.Random(1)
    sequences = [Sequence(id=i, source_ids=source, parameters=PARAMETERS) for i, source in enumerate(sources)]
    arrivals, batch_sizes = list(sequences), set()
    generator.shuffle(arrivals)
    while arrivals or not engine.idle:
        for _ in range(min(len(arrivals), generator.choice((0, 0, 1, 2, 5)))):
            engine.add(arrivals.pop())
        if engine.step():
            batch_sizes.add(engine.step_stats.batch_size)
    for sequence, answer in zip(sequences, answers, strict=True):
        ties.check(sequence.tokens, answer)
    assert ties.compared == len(WORDS)
    assert ties.undecided <= 2
    assert len(batch_sizes) > 5, "the batch did not change much"
