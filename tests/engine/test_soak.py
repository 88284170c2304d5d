"""Twenty thousand requests of every kind through one engine, a part of them cancelled at random."""

import gc
import random
from dataclasses import replace
from pathlib import Path

import pytest

from model_store.model.model import Model
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.sequence import Sequence, Status
from tests.engine.reference import random_sources

REQUESTS = 20_000
CONFIG = EngineConfig(slots=24, max_source_tokens=48, max_new_tokens=24, max_encode_tokens=96, max_decode_tokens=64)
SOURCES = random_sources(500, longest=40)
GREEDY = GenerationParameters(max_new_tokens=24)
KINDS = [
    GREEDY,
    replace(GREEDY, logprobs=True, top_n_tokens=3),
    replace(GREEDY, max_new_tokens=3),
    replace(GREEDY, repetition_penalty=1.3, no_repeat_ngram_size=2),
    replace(GREEDY, do_sample=True, temperature=0.8, top_p=0.9, seed=1),
    replace(GREEDY, do_sample=True, top_k=5, num_return_sequences=3, seed=2),
    replace(GREEDY, num_beams=4, num_return_sequences=2),
    replace(GREEDY, num_beams=2, early_stopping=True, length_penalty=0.5),
    replace(GREEDY, max_new_tokens=20, prefix_ids=(5, 6, 7, 8)),
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_integrity_is_kept_and_nothing_grows(t5_dir: Path, backend: str) -> None:
    engine, chance = Engine.load(Model.open(t5_dir), replace(CONFIG, backend=backend)), random.Random(0)
    requests = REQUESTS if backend == "native" else REQUESTS // 4
    alive: dict[int, Sequence] = {}
    ended = dict.fromkeys((Status.FINISHED, Status.CANCELLED), 0)
    resident = []
    added = steps = 0
    while added < requests or alive:
        while added < requests and len(alive) < 60:
            parameters = chance.choice(KINDS)
            sequence = Sequence(id=added, source_ids=chance.choice(SOURCES), parameters=parameters)
            engine.add(sequence)
            alive[added] = sequence
            added += 1
        if chance.random() < 0.2:
            assert engine.cancel(chance.choice(list(alive)))
        engine.step()
        steps += 1
        engine.check_integrity()
        for sequence in [sequence for sequence in alive.values() if sequence.status in ended]:
            ended[sequence.status] += 1
            if sequence.status is Status.FINISHED:
                assert sequence.hypotheses
            del alive[sequence.id]
        if steps % 1000 == 0:
            gc.collect()
            resident.append(resident_bytes())
    assert engine.idle
    assert sum(ended.values()) == requests
    assert ended[Status.CANCELLED] > requests // 20
    # After the first quarter nothing is new any more.
    settled = resident[len(resident) // 4]
    assert max(resident[len(resident) // 4 :]) - settled < 8 * 2**20, resident


def resident_bytes() -> int:
    """Memory of this process that is in use."""
    fields = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in fields if line.startswith("VmRSS:"))
