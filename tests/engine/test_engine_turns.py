"""A step for some of the running rows gives every sequence the tokens that it gets alone."""

import random
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from torch import Tensor

from model_store.model.model import Model
from server.engine.backend import Feed
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.sequence import Sequence, Status
from tests.engine.made_up_backend import MadeUpBackend, make_engine
from tests.engine.reference import random_sources

GREEDY = GenerationParameters(max_new_tokens=12)
KINDS = [
    GREEDY,
    replace(GREEDY, max_new_tokens=3, logprobs=True, top_n_tokens=2),
    replace(GREEDY, do_sample=True, temperature=0.9, seed=5),
    replace(GREEDY, do_sample=True, num_return_sequences=7, seed=6),
    replace(GREEDY, num_beams=8, num_return_sequences=3),
    replace(GREEDY, num_beams=2, length_penalty=0.5),
    replace(GREEDY, prefix_ids=(5, 6, 7)),
]
CONFIG = EngineConfig(slots=8, max_source_tokens=24, max_new_tokens=16, threads=1).with_spare_slots()


class SubsetsSeen(MadeUpBackend):
    """Notes which slots each step had."""

    steps: ClassVar[list[list[int]]] = []

    def decode(self, feed: Feed) -> Tensor:
        self.steps.append(sorted(set(feed.slots)))
        return super().decode(feed)


def requests(sources: list[list[int]], count: int, seed: int = 0) -> list[Sequence]:
    """Requests of one text or of several, interactive or of batch priority."""
    chance = random.Random(seed)
    made: list[Sequence] = []
    while len(made) < count:
        parameters, batch, owner = chance.choice(KINDS), chance.random() < 0.3, len(made)
        for _ in range(chance.choice([1, 1, 1, 5])):
            source = chance.choice(sources)
            made.append(Sequence(id=len(made), source_ids=source, parameters=parameters, owner=owner, batch=batch))
    return made


def run(engine: Engine, sequences: list[Sequence], *, cancelled: int = 0) -> None:
    """Let them arrive over time; some of them are cancelled."""
    chance, waiting = random.Random(1), list(reversed(sequences))
    while waiting or not engine.idle:
        for _ in range(min(len(waiting), chance.choice([0, 0, 1, 3]))):
            engine.add(waiting.pop())
        if cancelled and chance.random() < 0.05:
            cancelled -= engine.cancel(chance.choice(sequences).id)
        engine.step()
        engine.check_integrity()


def alone(engine: Engine, sequence: Sequence) -> Sequence:
    (made,) = engine.generate([sequence.source_ids], sequence.parameters)
    return made


def check(engine: Engine, sequences: list[Sequence]) -> None:
    finished = [each for each in sequences if each.status is Status.FINISHED]
    assert len(finished) > len(sequences) // 2
    known: dict[tuple[tuple[int, ...], GenerationParameters], Sequence] = {}
    for each in finished:
        key = tuple(each.source_ids), each.parameters
        expected = known.setdefault(key, known.get(key) or alone(engine, each))
        assert [(h.tokens, h.finish_reason) for h in each.hypotheses] == [
            (h.tokens, h.finish_reason) for h in expected.hypotheses
        ], each


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_company_of_other_kinds_changes_nothing(t5_dir: Path, backend: str) -> None:
    engine = Engine.load(Model.open(t5_dir), replace(CONFIG, backend=backend))
    sequences = requests(random_sources(12, longest=20), 60)
    run(engine, sequences, cancelled=5)
    check(engine, sequences)


def test_a_backend_with_replayed_steps_gets_all_rows(t5_dir: Path) -> None:
    engine = Engine.load(Model.open(t5_dir), replace(CONFIG, backend="torch", graphs="on"))
    sequences = requests(random_sources(12, longest=20), 30)
    run(engine, sequences)
    check(engine, sequences)


def test_steps_are_for_some_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SubsetsSeen, "steps", [])
    engine, _ = make_engine(8, backend=SubsetsSeen, spare_slots=1)
    sequences = requests([[3, 4, 5], [6, 7], [8] * 9], 200)
    run(engine, sequences, cancelled=20)
    check(engine, sequences)
    assert any(slots != list(range(len(slots))) for slots in SubsetsSeen.steps)
