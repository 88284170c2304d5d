"""Any order of arrivals, endings and cancellations keeps the slots dense and loses nothing. No tensors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.interface.parameters import GenerationParameters
from server.engine.scheduler import MOST_OVERTAKING, Move, Scheduler
from server.engine.sequence import Sequence, Status

BUDGET = 40


def sequence(number: int, source_tokens: int = 4, *, beams: int = 1, prefix: int = 0) -> Sequence:
    parameters = GenerationParameters(max_new_tokens=1, num_beams=beams, prefix_ids=(3,) * prefix)
    result = Sequence(id=number, source_ids=[3] * source_tokens, parameters=parameters)
    result.begin(0)
    return result


def make_scheduler(slots: int = 5, *, encode: int = BUDGET, decode: int = 100) -> Scheduler:
    return Scheduler(slots=slots, max_encode_tokens=encode, max_decode_tokens=decode)


def admitted_by(scheduler: Scheduler) -> list[int]:
    """Ids, in the order of arrival."""
    return sorted(sequence.id for batch in scheduler.plan().batches for sequence in batch)


ARRIVALS = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 6)), max_size=4)  # source tokens and beams
ENDINGS = st.sets(st.integers(0, 7), max_size=4)  # positions among the running rows
CANCELLED = st.lists(st.integers(0, 40), max_size=2)  # ids, which may be unknown or gone
RELEASED = st.booleans()  # whether an ending is that of one row, or of its sequence


@given(slots=st.integers(1, 6), steps=st.lists(st.tuples(ARRIVALS, CANCELLED, ENDINGS, RELEASED), max_size=25))
def test_slots_stay_dense_and_nobody_is_lost(
    slots: int, steps: list[tuple[list[tuple[int, int]], list[int], set[int], bool]]
) -> None:
    scheduler = make_scheduler(slots)
    memory: dict[int, tuple[int, int]] = {}  # by slot: whose state a cache would hold there
    everyone: list[Sequence] = []
    widths: list[int] = []
    admitted: list[int] = []
    for arrivals, cancelled, endings, released in [*steps, *[([], [], set(range(8)), False)] * 110]:
        for source_tokens, beams in arrivals:
            widths.append(min(beams, slots))
            everyone.append(sequence(len(everyone), source_tokens, beams=widths[-1]))
            scheduler.add(everyone[-1])
        for number in cancelled:
            known = number in scheduler
            assert (scheduler.remove(number, Status.CANCELLED) is not None) == known
        plan = scheduler.plan()
        for move in plan.moves:
            memory[move.target] = memory[move.source]
        newcomers = [each for batch in plan.batches for each in batch]
        for newcomer in newcomers:
            assert len(newcomer.rows) == widths[newcomer.id]
            for row in newcomer.rows:
                assert row.slot is not None
                memory[row.slot] = (newcomer.id, row.index)
        admitted += sorted(newcomer.id for newcomer in newcomers)
        rows = scheduler.rows
        scheduler.check_integrity()
        assert [row.slot for row in rows] == list(range(len(rows)))
        assert [memory[slot] for slot in range(len(rows))] == [(row.sequence.id, row.index) for row in rows]
        assert rows or not scheduler.waiting, "nothing runs, and somebody waits"
        positions = sum(len(batch) * max(len(each.source_ids) for each in batch) for batch in plan.batches)
        assert len(newcomers) <= 1 or positions <= BUDGET
        for position in endings:
            if position < len(rows) and rows[position].slot is not None:
                owner = rows[position].sequence
                if released and len(owner.rows) > 1:
                    scheduler.release(rows[position])
                else:
                    scheduler.remove(owner.id, Status.FINISHED)
    assert scheduler.idle
    assert {s.status for s in everyone} <= {Status.FINISHED, Status.CANCELLED}
    for place, number in enumerate(admitted):
        later = [other for other in admitted[:place] if other > number]
        assert len(later) <= MOST_OVERTAKING, "overtaken too often"


def test_newcomers_fill_holes_and_the_last_ones_close_the_rest() -> None:
    scheduler = make_scheduler()
    everyone = [sequence(number) for number in range(6)]
    for one in everyone[:5]:
        scheduler.add(one)
    scheduler.plan()
    for number in (0, 1, 3):
        scheduler.remove(number, Status.FINISHED)
    scheduler.add(everyone[5])
    plan = scheduler.plan()
    assert [[s.id for s in batch] for batch in plan.batches] == [[5]]
    assert plan.moves == [Move(source=4, target=1, row=everyone[4].rows[0])]
    assert [row.sequence.id for row in scheduler.rows] == [5, 4, 2]


def test_beams_take_what_slots_there_are_and_leave_together() -> None:
    scheduler = make_scheduler()
    for number, beams in enumerate((1, 3, 1)):
        scheduler.add(sequence(number, beams=beams))
    scheduler.plan()
    scheduler.remove(0, Status.FINISHED)
    scheduler.add(sequence(3, beams=1))
    scheduler.plan()
    assert [(row.sequence.id, row.index) for row in scheduler.rows] == [(3, 0), (1, 0), (1, 1), (1, 2), (2, 0)]
    scheduler.remove(1, Status.FINISHED)
    scheduler.plan()
    assert [row.sequence.id for row in scheduler.rows] == [3, 2]


def test_sources_of_like_length_are_encoded_together() -> None:
    scheduler = make_scheduler(encode=1000)
    for number, source_tokens in enumerate((90, 5, 100, 6)):
        scheduler.add(sequence(number, source_tokens))
    assert [[s.id for s in batch] for batch in scheduler.plan().batches] == [[2, 0], [3, 1]]


def test_a_batch_more_costs_something_too() -> None:
    scheduler = make_scheduler(encode=1000)
    for number, source_tokens in enumerate((9, 5, 12)):
        scheduler.add(sequence(number, source_tokens))
    assert [[s.id for s in batch] for batch in scheduler.plan().batches] == [[2, 0, 1]]


def test_where_padding_would_exceed_the_bound_there_is_none() -> None:
    scheduler = make_scheduler(encode=25)
    for number, source_tokens in enumerate((9, 4, 12)):
        scheduler.add(sequence(number, source_tokens))
    assert [[s.id for s in batch] for batch in scheduler.plan().batches] == [[2], [0], [1]]


def test_one_source_beyond_the_bound_is_admitted_alone() -> None:
    scheduler = make_scheduler()
    for number in range(2):
        scheduler.add(sequence(number, BUDGET + 1))
    assert admitted_by(scheduler) == [0]
    assert admitted_by(scheduler) == [1]


def test_prefixes_are_bounded_by_a_budget_of_their_own() -> None:
    scheduler = make_scheduler(decode=20)
    for number in range(4):
        scheduler.add(sequence(number, prefix=7))
    assert admitted_by(scheduler) == [0, 1]
    for row in scheduler.rows:
        row.fresh = 1
    assert admitted_by(scheduler) == [2, 3]
    scheduler.remove(0, Status.FINISHED)
    scheduler.add(sequence(4, prefix=30))
    assert admitted_by(scheduler) == [4], "a single one may exceed it"


def test_a_wide_sequence_is_overtaken_but_not_for_ever() -> None:
    scheduler = make_scheduler()
    scheduler.add(sequence(0))
    scheduler.plan()
    wide = sequence(1, beams=5)
    scheduler.add(wide)
    for number in range(2, 60):
        scheduler.add(sequence(number))
    ran = []
    while wide.status is Status.WAITING:
        ran += admitted_by(scheduler)
        scheduler.check_integrity()
        if wide.status is Status.WAITING:
            oldest = min(row.sequence.id for row in scheduler.rows)
            scheduler.remove(oldest, Status.FINISHED)
    assert ran == [*range(2, 2 + MOST_OVERTAKING), 1]


@pytest.mark.parametrize("beams", [2, 5])
def test_rows_that_fit_are_not_held_up_by_a_long_queue_of_wide_ones(beams: int) -> None:
    scheduler = make_scheduler()
    for number in range(2):
        scheduler.add(sequence(number, beams=3))
    for number in range(2, 6):
        scheduler.add(sequence(number, beams=beams))
    assert admitted_by(scheduler) == ([0, 2] if beams == 2 else [0])
