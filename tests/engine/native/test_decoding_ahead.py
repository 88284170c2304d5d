"""Greedy steps that nobody looks at: when they are made, and that nothing but time comes of it."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from model_store.model.model import Model
from server.engine.capabilities import why_not_native
from server.engine.choice.decoding import Decoding
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.native.operator import library as native
from server.engine.sequence import Sequence, Status, TokenEvent
from tests.engine.made_up_backend import EOS_ID, POISON, AheadMadeUpBackend, make_engine
from tests.engine.reference import random_sources

needs_native = pytest.mark.skipif(native.library() is None, reason=str(why_not_native(EngineConfig())))

CONFIG = EngineConfig(slots=8, max_source_tokens=20, max_new_tokens=24, ahead_s=60.0, threads=2)
SOURCES = random_sources(16, longest=20)
# What the made-up logits come to: twelve tokens, an end token on the way, the poison on the way.
SOUND, ENDS, BREAKS = [8, 6], [7, 6], [31, 6]
PLAIN = GenerationParameters(max_new_tokens=12, ignore_eos=True)


def ahead_engine(**changes: Any) -> tuple[Engine, AheadMadeUpBackend]:
    engine, backend = make_engine(backend=AheadMadeUpBackend, **{"ahead_s": 60.0, **changes})
    assert isinstance(backend, AheadMadeUpBackend)
    return engine, backend


def run(engine: Engine, *requests: tuple[list[int], GenerationParameters]) -> tuple[list[Sequence], list[TokenEvent]]:
    sequences = [Sequence(id=i, source_ids=source, parameters=wanted) for i, (source, wanted) in enumerate(requests)]
    for one in sequences:
        engine.add(one)
    events = []
    while not engine.idle:
        events += engine.step()
        engine.check_integrity()
    return sequences, events


def test_a_greedy_answer_is_made_at_once() -> None:
    engine, backend = ahead_engine()
    (one,), events = run(engine, (SOUND, PLAIN))
    assert backend.made_ahead == [12]
    assert [event.token for event in events] == one.tokens
    assert [event.finish_reason is None for event in events] == [True] * 11 + [False]
    stats = engine.step_stats
    assert (stats.steps, stats.batch_size, stats.generated_tokens, engine.idle) == (12, 1, 12, True)


def test_each_token_has_its_own_time() -> None:
    engine, _ = ahead_engine()
    (one,), events = run(engine, (SOUND, PLAIN))
    times = [event.made_s for event in events]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert min(gaps) > 0
    assert gaps == pytest.approx([gaps[0]] * 11, abs=1e-6)
    assert (one.first_token_s, one.finished_s) == (times[0], times[-1])
    assert one.timings.time_per_output_token_ms == pytest.approx(1e3 * gaps[0], abs=1e-3)


def test_an_end_token_ends_the_steps_for_all() -> None:
    engine, backend = ahead_engine()
    free = GenerationParameters(max_new_tokens=12)
    sequences, _ = run(engine, *[([token, 6], free) for token in (6, 8, 9, 12)])
    lengths = sorted({len(one.tokens) for one in sequences})
    assert len(lengths) > 1, "all end together"
    # Somebody ended after each of them, and the last was alone at last.
    assert list(itertools.accumulate(backend.made_ahead)) == lengths


def test_one_step_at_a_time_where_it_is_off() -> None:
    engine, backend = ahead_engine(ahead_s=0.0)
    run(engine, (SOUND, PLAIN))
    assert backend.made_ahead == []


@needs_native
def test_no_steps_ahead_where_two_would_take_too_long(t5_dir: Path) -> None:
    """Nothing is known before the first step; then each is made by itself, with the same tokens."""
    slow = Engine.load(Model.open(t5_dir), replace(CONFIG, ahead_s=1e-9))
    fast = Engine.load(Model.open(t5_dir), CONFIG)
    parameters = GenerationParameters(max_new_tokens=12, ignore_eos=True)
    made: dict[Engine, list[int]] = {slow: [], fast: []}
    answers = []
    for engine, steps in made.items():
        one = Sequence(id=0, source_ids=SOURCES[0], parameters=parameters)
        engine.add(one)
        while not engine.idle:
            engine.step()
            steps.append(engine.step_stats.steps)
        answers.append(one.tokens)
    assert answers[0] == answers[1]
    assert made[slow] == [1] * 12
    assert made[fast] == [12]


@pytest.mark.parametrize(
    "wanted",
    [
        {"do_sample": True, "seed": 1},
        {"logprobs": True},
        {"top_n_tokens": 2},
        {"num_beams": 2},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 3},
        {"suppress_tokens": (5,)},
        {"bad_words": ((7, 8),)},
        {"num_return_sequences": 2, "do_sample": True, "seed": 1},
    ],
)
def test_who_wants_more_than_the_likeliest_token_is_looked_at(wanted: dict[str, Any]) -> None:
    engine, backend = ahead_engine(slots=8)  # both are small requests, which share their steps
    run(engine, (SOUND, PLAIN), (SOUND, replace(PLAIN, **wanted)))
    assert backend.made_ahead == [], "both run for equally long"


def test_whoever_waits_is_not_kept_waiting() -> None:
    engine, backend = ahead_engine(slots=2, max_encode_tokens=2)
    for number in range(2):  # the second finds no room in the first step's encoder
        engine.add(Sequence(id=number, source_ids=SOUND, parameters=PLAIN))
    engine.step()
    assert (backend.made_ahead, engine._scheduler.waiting) == ([], 1)
    engine.step()
    assert backend.made_ahead == [11]


def test_different_end_tokens_are_not_mixed() -> None:
    engine, backend = ahead_engine()
    run(engine, (SOUND, PLAIN), (ENDS, replace(PLAIN, ignore_eos=False)))
    (ended,), _ = run(make_engine()[0], (ENDS, replace(PLAIN, ignore_eos=False)))
    assert len(ended.tokens) < 12, "it is no example"
    assert backend.made_ahead == [12 - len(ended.tokens)]


def test_a_prefix_comes_first() -> None:
    engine, backend = ahead_engine()
    run(engine, (SOUND, replace(PLAIN, prefix_ids=(8, 9))))
    assert backend.made_ahead == [11]


def test_a_row_that_is_not_finite_fails_at_its_token_and_no_other_does() -> None:
    engine, _ = ahead_engine()
    sound, broken = (SOUND, PLAIN), ([POISON], PLAIN)
    sequences, events = run(engine, sound, broken)
    assert [one.status for one in sequences] == [Status.FINISHED, Status.FAILED]
    assert [event.sequence_id for event in events if event.error is not None] == [1]
    assert sequences[0].tokens == run(make_engine()[0], sound)[0][0].tokens
    (one,), _ = run(make_engine()[0], (BREAKS, PLAIN))
    assert len(one.tokens) > 2, "it is no example"
    (ahead,), _ = run(ahead_engine()[0], (BREAKS, PLAIN))
    assert (ahead.status, ahead.error, ahead.tokens) == (Status.FAILED, one.error, one.tokens)


@given(
    made=st.integers(1, 80),
    prefix=st.integers(0, 3),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "min_new_tokens": st.integers(0, 5),
            "forced_bos_token_id": st.just(7),
            "forced_eos_token_ids": st.just((EOS_ID,)),
            "begin_suppress_tokens": st.just((5,)),
            "suppress_tokens": st.just((5,)),
            "do_sample": st.just(True),
        },
    ),
)
def test_plain_steps_are_those_that_are_plain(made: int, prefix: int, fields: dict[str, Any]) -> None:
    wanted = GenerationParameters(max_new_tokens=made, prefix_ids=tuple(range(5, 5 + prefix)), **fields)
    decoding, end = Decoding(wanted, (EOS_ID,)), 1 + prefix + made
    for length in range(1 + prefix, end):
        plain = list(itertools.takewhile(decoding.plain_at, range(length, end)))
        assert decoding.plain_steps(length) == len(plain)


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_native_steps_are_the_same_steps(t5_dir: Path, dtype: str) -> None:
    config = replace(CONFIG, dtype=dtype)
    ahead, stepwise = (
        Engine.load(Model.open(t5_dir), config),
        Engine.load(Model.open(t5_dir), replace(config, ahead_s=0.0)),
    )
    for free in (PLAIN, GenerationParameters(max_new_tokens=24)):
        expected = stepwise.generate(SOURCES, free)
        assert [one.tokens for one in ahead.generate(SOURCES, free)] == [one.tokens for one in expected]
        for source, one in zip(SOURCES[:4], expected, strict=False):
            (alone,), _ = run(ahead, (source, free))
            assert alone.tokens == one.tokens
            assert ahead.step_stats.steps == len(one.tokens)
    assert stepwise.step_stats.steps == 1


@needs_native
def test_the_native_steps_stop_in_time(t5_dir: Path) -> None:
    engine = Engine.load(Model.open(t5_dir), replace(CONFIG, ahead_s=1e-7))
    engine.step_stats = replace(engine.step_stats, decode_s=0.0)
    (one,), _ = run(engine, (SOURCES[0], PLAIN))
    assert engine.step_stats.steps == 1
    assert len(one.tokens) == 12


@needs_native
def test_of_equal_logits_the_native_steps_take_the_first_as_ever(t5_dir: Path, tmp_path: Path) -> None:
    """Tokens that have a twin at the end of the vocabulary never lose to it."""
    (tmp_path / "config.json").write_text((t5_dir / "config.json").read_text())
    tensors = load_file(t5_dir / "model.safetensors")
    shared = tensors["shared.weight"]
    half = len(shared) // 2
    shared[half : 2 * half] = shared[:half]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ahead, stepwise = (Engine.load(Model.open(tmp_path), replace(CONFIG, ahead_s=ahead_s)) for ahead_s in (60.0, 0.0))
    tokens = [one.tokens for one in ahead.generate(SOURCES, PLAIN)]
    assert tokens == [one.tokens for one in stepwise.generate(SOURCES, PLAIN)]
    assert all(token < half or token == len(shared) - 1 for each in tokens for token in each)


@needs_native
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_native_steps_that_are_not_finite(t5_dir: Path, tmp_path: Path, poison: float) -> None:
    (tmp_path / "config.json").write_text((t5_dir / "config.json").read_text())
    tensors = load_file(t5_dir / "model.safetensors")
    said = Engine.load(Model.open(t5_dir), CONFIG).generate(SOURCES, PLAIN)
    late = next(
        token for one in said for token in one.tokens[4:] if token not in one.tokens[:4] and token not in SOURCES[0]
    )
    tensors["lm_head.weight"] = tensors["shared.weight"].clone()
    tensors["shared.weight"][late] = torch.tensor(poison)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ahead, stepwise = (Engine.load(Model.open(tmp_path), replace(CONFIG, ahead_s=ahead_s)) for ahead_s in (60.0, 0.0))
    results = [
        [(one.status, one.error, one.tokens) for one in engine.generate(SOURCES, PLAIN)] for engine in (ahead, stepwise)
    ]
    assert results[0] == results[1]
    assert {status for status, _, _ in results[0]} == {Status.FINISHED, Status.FAILED}
