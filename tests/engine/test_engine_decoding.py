"""What one generation comes to, whatever runs beside it. The logits are made up, so that nothing is within rounding."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.engine import Engine
from server.engine.errors import BadRequestError
from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.results import FinishReason, Hypothesis
from server.engine.sequence import Sequence, Status, TokenEvent
from tests.engine.made_up_backend import (
    EOS_ID,
    POISON,
    SECOND_EOS_ID,
    VOCABULARY,
    AheadMadeUpBackend,
    MadeUpBackend,
    make_engine,
)

MOST = 12


def parameters(**fields: object) -> GenerationParameters:
    return GenerationParameters(**({"max_new_tokens": MOST} | fields))  # type: ignore[arg-type]


def run(engine: Engine, *sequences: Sequence) -> list[TokenEvent]:
    events = []
    for one in sequences:
        engine.add(one)
    while not engine.idle:
        events += engine.step()
        engine.check_integrity()
    return events


def sequence(number: int, source: list[int], wanted: GenerationParameters) -> Sequence:
    return Sequence(id=number, source_ids=source, parameters=wanted)


def alone(source: list[int], wanted: GenerationParameters) -> Sequence:
    engine, _ = make_engine()
    one = sequence(0, source, wanted)
    run(engine, one)
    return one


TOKENS = st.integers(3, VOCABULARY - 2)
SOURCES = st.lists(TOKENS, min_size=1, max_size=12)
PARAMETERS = st.builds(
    lambda made, prefix, rows, fields: parameters(max_new_tokens=made, prefix_ids=tuple(prefix), **rows, **fields),
    st.integers(1, 8),
    st.lists(TOKENS, max_size=4),
    st.one_of(
        st.just({}),
        st.builds(
            lambda beams, returned, early, penalty: {
                "num_beams": beams,
                "num_return_sequences": min(beams, returned),
                "early_stopping": early,
                "length_penalty": penalty,
            },
            st.integers(2, 6),
            st.integers(1, 6),
            st.sampled_from([True, False, "never"]),
            st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
        ),
        st.fixed_dictionaries(
            {
                "do_sample": st.just(True),
                "seed": st.integers(0, 2**64 - 1),
                "num_return_sequences": st.integers(1, 4),
                "top_k": st.sampled_from([0, 3, 20]),
                "top_p": st.sampled_from([1.0, 0.8]),
                "typical_p": st.sampled_from([1.0, 0.7]),
                "temperature": st.sampled_from([0.5, 1.0, 3.0]),
            }
        ),
        st.fixed_dictionaries({"do_sample": st.just(True), "seed": st.integers(0, 9), "num_beams": st.integers(2, 4)}),
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "repetition_penalty": st.sampled_from([0.5, 2.0]),
            "no_repeat_ngram_size": st.integers(1, 3),
            "forced_bos_token_id": st.integers(7, VOCABULARY - 2),
            "forced_eos_token_ids": st.just((EOS_ID,)),
            "suppress_tokens": st.just((5, 6)),
            "logprobs": st.just(True),
            "top_n_tokens": st.integers(1, 5),
            "ignore_eos": st.just(True),
        },
    ),
)
REQUESTS = st.lists(st.tuples(SOURCES, PARAMETERS, st.integers(0, 3)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    requests=REQUESTS,
    cancelled=st.sets(st.integers(0, 7), max_size=2),
    slots=st.integers(6, 9),
    backend=st.sampled_from([MadeUpBackend, AheadMadeUpBackend]),
)
def test_an_answer_is_the_same_alone_and_in_any_company(
    requests: list[tuple[list[int], GenerationParameters, int]],
    cancelled: set[int],
    slots: int,
    backend: type[MadeUpBackend],
) -> None:
    engine, _ = make_engine(slots, backend=backend, ahead_s=60.0)
    sequences = []
    for number, (source, wanted, steps_before) in enumerate(requests):
        for _ in range(steps_before):
            engine.step()
            engine.check_integrity()
        sequences.append(sequence(number, source, wanted))
        engine.add(sequences[-1])
        if number in cancelled:
            engine.step()
            engine.cancel(number)
            engine.check_integrity()
    while not engine.idle:
        engine.step()
        engine.check_integrity()
    for one, (source, wanted, _) in zip(sequences, requests, strict=True):
        expected = alone(source, wanted)
        if one.status is not Status.CANCELLED:
            assert one.status is expected.status
            assert one.error == expected.error
            assert without_rounding(one.hypotheses) == without_rounding(expected.hypotheses)
            assert one.tokens == expected.tokens


def without_rounding(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    """Sums over rows of a batch may differ in the last bit."""
    return [
        dataclasses.replace(
            each,
            score=None if each.score is None else round(each.score, 3),
            logprobs=[round(logprob, 3) for logprob in each.logprobs],
            top_tokens=[
                [dataclasses.replace(top, logprob=round(top.logprob, 3)) for top in tops] for tops in each.top_tokens
            ],
        )
        for each in hypotheses
    ]


def test_a_seed_decides_the_answer_and_nothing_else_does() -> None:
    wanted = parameters(do_sample=True, ignore_eos=True)
    seeds = [1, 2, 1, None, None]
    answers = [alone([5, 6], dataclasses.replace(wanted, seed=seed)) for seed in seeds]
    assert answers[0].tokens == answers[2].tokens != answers[1].tokens
    assert answers[3].tokens != answers[4].tokens
    drawn = answers[3].parameters
    assert drawn.seed is not None
    assert alone([5, 6], drawn).tokens == answers[3].tokens, "a drawn seed is told, and repeats the answer"


def test_samples_of_one_request_differ_and_come_best_first() -> None:
    wanted = parameters(do_sample=True, seed=3, num_return_sequences=4, logprobs=True)
    engine, backend = make_engine()
    one = sequence(0, [5, 6, 7], wanted)
    events = run(engine, one)
    assert backend.encoded == [1], "the source is encoded once"
    assert [(event.token, event.finish_reason) for event in events] == [(None, one.finish_reason)]
    assert len({tuple(each.tokens) for each in one.hypotheses}) == 4
    scores = [each.score for each in one.hypotheses]
    assert scores == sorted(scores, key=lambda score: -(score or 0.0))
    for each in one.hypotheses:
        assert each.score == pytest.approx(sum(each.logprobs))
        assert (each.finish_reason is FinishReason.EOS) == (each.tokens[-1] == EOS_ID)
    assert (one.tokens, one.logprobs) == (one.hypotheses[0].tokens, one.hypotheses[0].logprobs)
    first = alone([5, 6, 7], dataclasses.replace(wanted, num_return_sequences=1))
    assert first.tokens in [each.tokens for each in one.hypotheses], "the first sample is the only one's"


def test_a_sample_that_ends_gives_its_slot_away() -> None:
    engine, _ = make_engine(slots=4)
    engine.add(sequence(0, [5, 6, 7], parameters(do_sample=True, seed=3, num_return_sequences=4)))
    sizes = []
    while not engine.idle:
        engine.step()
        engine.check_integrity()
        sizes.append(engine.step_stats.batch_size)
    assert sizes[0] == 4
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1


def test_any_of_several_end_tokens_ends() -> None:
    engine, _ = make_engine(eos_ids=(EOS_ID, SECOND_EOS_ID), slots=30)
    sequences = [sequence(i, [5, i + 3], parameters(num_beams=1 + i % 3)) for i in range(20)]
    run(engine, *sequences)
    last = {one.tokens[-1] for one in sequences if one.finish_reason is FinishReason.EOS}
    assert last == {EOS_ID, SECOND_EOS_ID}
    assert all(not {EOS_ID, SECOND_EOS_ID} & set(one.tokens[:-1]) for one in sequences)


def test_logprobs_and_top_tokens_are_the_model_s_own() -> None:
    """They do not change with what is done to the scores, and hold along a beam's own history."""
    for fields in ({}, {"num_beams": 3, "num_return_sequences": 3}, {"do_sample": True, "seed": 1, "temperature": 9.0}):
        wanted = parameters(logprobs=True, top_n_tokens=3, no_repeat_ngram_size=1, prefix_ids=(4, 5), **fields)
        for each in alone([7, 8, 9], wanted).hypotheses:
            assert len(each.logprobs) == len(each.top_tokens) == len(each.tokens)
            _, backend = make_engine()
            backend.encode([[7, 8, 9]], [[0]])
            backend.targets[0] = (0, 4, 5)
            for token, logprob, tops in zip(each.tokens, each.logprobs, each.top_tokens, strict=True):
                expected = backend._logits(0).log_softmax(-1)
                assert logprob == pytest.approx(expected[token].item(), abs=1e-5)
                best = expected.topk(3)
                assert [top.id for top in tops] == best.indices.tolist()
                assert [top.logprob for top in tops] == pytest.approx(best.values.tolist(), abs=1e-5)
                backend.targets[0] += (token,)


def test_events_of_single_rows_carry_what_was_asked_for() -> None:
    engine, _ = make_engine()
    asking = sequence(0, [5, 6], parameters(logprobs=True, top_n_tokens=2, ignore_eos=True, max_new_tokens=4))
    silent = sequence(1, [5, 6], parameters(ignore_eos=True, max_new_tokens=4))
    events = run(engine, asking, silent)
    mine = [event for event in events if event.sequence_id == 0]
    assert [event.token for event in mine] == asking.tokens == silent.tokens
    assert [event.logprob for event in mine] == asking.logprobs
    assert [event.top_tokens for event in mine] == asking.hypotheses[0].top_tokens
    assert all(event.logprob is None and not event.top_tokens for event in events if event.sequence_id == 1)


def test_a_beam_search_copies_no_more_than_it_must() -> None:
    engine, backend = make_engine()
    run(engine, sequence(0, [5, 6], parameters(num_beams=2, max_new_tokens=1)))
    assert backend.copied == 0
    run(engine, sequence(0, [5, 6], parameters(num_beams=4, ignore_eos=True)))
    assert 0 < backend.copied < 3 * MOST, "at least one beam stays where it is"


def test_what_is_not_finite_ends_its_own_sequence_alone() -> None:
    kinds = [parameters(), parameters(num_beams=3), parameters(do_sample=True, seed=1, num_return_sequences=2)]
    engine, _ = make_engine(slots=12)
    sick = [sequence(i, [POISON, 5], wanted) for i, wanted in enumerate(kinds)]
    well = [sequence(10 + i, [5, 6 + i], wanted) for i, wanted in enumerate(kinds)]
    events = run(engine, *[one for pair in zip(sick, well, strict=True) for one in pair])
    for one in sick:
        assert one.status is Status.FAILED
        assert one.error is not None
        assert "became NaN or infinite at token 1" in one.error
        assert [event.error for event in events if event.sequence_id == one.id] == [one.error]
    for one in well:
        expected = alone(one.source_ids, one.parameters)
        assert one.tokens == expected.tokens
        assert one.status is expected.status


def test_a_beam_that_is_not_finite_ends_its_search() -> None:
    forced = parameters(num_beams=3, prefix_ids=(POISON,))
    assert alone([5], forced).status is Status.FAILED
    # A token on one beam's way poisons that beam alone, and with it the search.
    engine, _ = make_engine()
    searches = [sequence(i, [5, i + 3], parameters(num_beams=5, ignore_eos=True)) for i in range(30)]
    run(engine, *searches)
    statuses = [one.status for one in searches]
    assert Status.FAILED in statuses
    assert Status.FINISHED in statuses


def test_the_strongest_penalty_for_length_does_not_end_a_search_before_it_has_an_answer() -> None:
    """Scores are then far below what marks a beam that is none, at which transformers gives up."""
    wanted = {"num_beams": 3, "num_return_sequences": 3, "ignore_eos": True, "suppress_tokens": (POISON,)}
    one = alone([5, 6], parameters(length_penalty=-10.0, **wanted))
    assert one.status is Status.FINISHED
    assert [len(each.tokens) for each in one.hypotheses] == [MOST] * 3
    scores = [each.score or 0.0 for each in one.hypotheses]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] < -1e9


@pytest.mark.parametrize("fields", [{}, {"num_beams": 2}, {"do_sample": True, "seed": 1}])
def test_where_every_token_is_forbidden_the_sequence_ends_with_the_reason(fields: dict[str, object]) -> None:
    all_but_one = tuple(token for token in range(VOCABULARY) if token != 5)
    wanted = parameters(no_repeat_ngram_size=1, suppress_tokens=all_but_one, **fields)
    engine, _ = make_engine()
    one, neighbour = sequence(0, [5, 6], wanted), sequence(1, [5, 6], parameters())
    run(engine, one, neighbour)
    assert one.status is Status.FAILED
    assert one.error is not None
    assert "every token is forbidden at token 2: allow more through no_repeat_ngram_size" in one.error
    assert neighbour.tokens == alone([5, 6], parameters()).tokens


def test_beams_and_samples_are_cancelled_within_a_step() -> None:
    engine, backend = make_engine(slots=5)
    engine.add(sequence(0, [5], parameters(num_beams=4, ignore_eos=True)))
    engine.add(sequence(1, [6], parameters(do_sample=True, seed=1, num_return_sequences=4, ignore_eos=True)))
    engine.step()
    assert engine._scheduler.waiting == 1
    assert engine.cancel(0)
    engine.step()
    engine.check_integrity()
    assert (engine._scheduler.running, engine._scheduler.waiting, engine.step_stats.batch_size) == (1, 0, 4)
    assert engine.cancel(1)
    assert engine.idle
    assert engine.step() == []
    assert len(backend.encoded) == 2


def test_a_long_prefix_joins_without_stopping_the_others() -> None:
    engine, backend = make_engine(slots=4, max_decode_tokens=8)
    runner = sequence(0, [5], parameters(ignore_eos=True))
    engine.add(runner)
    engine.step()
    for number in (1, 2):
        engine.add(sequence(number, [5], parameters(prefix_ids=(3,) * 6, max_new_tokens=2)))
    engine.step()
    assert (engine._scheduler.running, engine._scheduler.waiting) == (2, 1)
    assert len(runner.tokens) == 2
    engine.step()
    assert engine._scheduler.running == 2, "one went, one came"
    assert len(runner.tokens) == 3
    assert len(backend.encoded) == 3


def test_tokens_are_counted_by_answers_not_by_beams() -> None:
    engine, _ = make_engine()
    engine.add(sequence(0, [5], parameters(num_beams=4, ignore_eos=True)))
    engine.add(sequence(1, [5], parameters(do_sample=True, seed=1, num_return_sequences=2, ignore_eos=True)))
    for _ in range(2):
        engine.step()
        assert (engine.step_stats.batch_size, engine.step_stats.generated_tokens) == (6, 3)


def test_timings_of_beams_count_their_first_step() -> None:
    one = alone([5, 6], parameters(num_beams=3, ignore_eos=True))
    timings = one.timings
    assert 0 < timings.time_to_first_token_ms < timings.total_ms
    assert timings.time_per_output_token_ms is not None


def test_half_precision_logits_are_chosen_from_in_float32() -> None:
    engine, backend = make_engine()
    exact = backend.decode
    backend.decode = lambda feed: exact(feed).to(torch.bfloat16)  # type: ignore[method-assign]
    one = sequence(0, [5, 6], parameters(logprobs=True, num_beams=2, ignore_eos=True))
    run(engine, one)
    assert one.hypotheses[0].score == pytest.approx(sum(one.logprobs) / MOST, abs=1e-5)


def test_parameters_are_refused_at_admission() -> None:
    engine, _ = make_engine()
    with pytest.raises(BadRequestError, match="num_beams is 7: it must be from 1 to 6, the slots"):
        engine.add(sequence(0, [5], parameters(num_beams=7)))
    assert engine.idle
