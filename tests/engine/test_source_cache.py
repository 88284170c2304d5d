"""Encoded sources that are read again: the same bits, within their bound, and only by those who may."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model_store.model.model import Model
from server.engine import source_queue
from server.engine.capabilities import why_not_native
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.sequence import Sequence
from server.engine.source_cache import SourceCache
from tests.engine.reference import random_sources

CONFIG = EngineConfig(slots=6, max_source_tokens=40, max_new_tokens=12, threads=1)
WAYS: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 5},
    {"num_beams": 3, "num_return_sequences": 2},
    {"do_sample": True, "num_return_sequences": 2, "seed": 3},
    {"repetition_penalty": 1.3},
]


def load(folder: Path, backend: str, cache_bytes: int) -> Engine:
    config = replace(CONFIG, backend=backend, source_cache_bytes=cache_bytes)
    if backend == "native" and (problem := why_not_native(config)) is not None:
        pytest.skip(problem)
    return Engine.load(Model.open(folder), config)


def played(engine: Engine, seed: int, *, reuse: bool = True) -> tuple[list[list[Any]], int, int]:
    """Sequences that join at random steps, of few sources in many ways; what each said, and how many sources were kept
    and were not.
    """
    chance = random.Random(seed)
    sources, hits, misses = random_sources(4, longest=40, seed=seed), 0, 0
    sequences = []
    for number in range(40):
        ways = {"max_new_tokens": 12, "logprobs": True, **chance.choice(WAYS)}
        sequence = Sequence(
            id=number,
            source_ids=chance.choice(sources),
            parameters=GenerationParameters(**ways),
            reuses_source=reuse,
        )
        sequences.append(sequence)
        engine.add(sequence)
        for _ in range(chance.randrange(8)):
            engine.step()
            hits, misses = hits + engine.step_stats.source_hits, misses + engine.step_stats.source_misses
    while not engine.idle:
        engine.step()
        hits, misses = hits + engine.step_stats.source_hits, misses + engine.step_stats.source_misses
    assert not any(sequence.error for sequence in sequences)
    said = [[(each.tokens, each.score, each.logprobs) for each in sequence.hypotheses] for sequence in sequences]
    return said, hits, misses


@pytest.mark.parametrize("pause_s", [source_queue.LONGEST_PAUSE_S, 0.0], ids=["at once", "in slices"])
def test_on_the_operator_answers_are_the_same_bits(
    dense_dir: Path, pause_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_queue, "LONGEST_PAUSE_S", pause_s)
    plain, _, _ = played(load(dense_dir, "native", 0), 1)
    again, hits, misses = played(load(dense_dir, "native", 1_000_000), 1)
    assert again == plain
    assert hits + misses == 40
    assert hits >= 25


def test_on_pytorch_tokens_are_the_same(dense_dir: Path) -> None:
    plain, _, _ = played(load(dense_dir, "torch", 0), 2)
    again, hits, _ = played(load(dense_dir, "torch", 1_000_000), 2)
    assert [[tokens for tokens, _, _ in each] for each in again] == [[t for t, _, _ in each] for each in plain]
    assert hits >= 25


def test_who_does_not_ask_for_it_never_gets_it(dense_dir: Path) -> None:
    engine = load(dense_dir, "torch", 1_000_000)
    _, hits, misses = played(engine, 3, reuse=False)
    assert (hits, misses) == (0, 0)
    source = random_sources(4, longest=40, seed=3)[0]
    engine.generate([source], GenerationParameters(max_new_tokens=3))
    assert engine.step_stats.source_hits == 0, "measurements encode"
    _, hits, misses = played(engine, 3)
    assert misses >= 4, "nothing was kept of those either"


def test_what_is_read_again_counts_as_no_encoding(dense_dir: Path) -> None:
    engine = load(dense_dir, "torch", 1_000_000)
    stats = []
    for number in range(2):
        parameters = GenerationParameters(max_new_tokens=3)
        engine.add(Sequence(id=number, source_ids=[5, 6, 1], parameters=parameters, reuses_source=True))
        engine.step()
        stats.append(engine.step_stats)
        while not engine.idle:
            engine.step()
    assert stats[0].encode_s > 0
    assert [(each.source_tokens, each.source_hits, each.source_misses) for each in stats] == [(3, 0, 1), (0, 1, 0)]
    assert stats[1].encode_s == 0


def test_it_is_bounded_and_drops_what_was_not_used_for_longest() -> None:
    encoded = [torch.zeros(1000, dtype=torch.uint8)]
    cache = SourceCache(7_000)
    for token in range(3):
        cache.put([token], encoded)
    assert cache.get([0]) is encoded
    cache.put([3], encoded)
    assert cache.get([1]) is None
    assert [cache.get([token]) is encoded for token in (0, 2, 3)] == [True] * 3
    cache.put([9] * 1000, encoded)
    assert cache.get([9] * 1000) is None, "too large by itself"
    assert cache.taken_bytes <= 7_000
