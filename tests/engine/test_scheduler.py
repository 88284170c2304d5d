"""Any order of arrivals, endings and cancellations keeps the slots dense and loses nothing. No tensors."""

from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduler import Move, Scheduler
from server.engine.sequence import GenerationParameters, Sequence, Status

PARAMETERS = GenerationParameters(max_new_tokens=1)
BUDGET = 40


def sequence(number: int, source_tokens: int = 4) -> Sequence:
    return Sequence(id=number, source_ids=[3] * source_tokens, parameters=PARAMETERS)


ARRIVALS = st.lists(st.integers(1, 50), max_size=4)
ENDINGS = st.sets(st.integers(0, 7), max_size=4)  # positions among the running
CANCELLED = st.lists(st.integers(0, 40), max_size=2)  # ids, which may be unknown or gone


@given(slots=st.integers(1, 6), steps=st.lists(st.tuples(ARRIVALS, CANCELLED, ENDINGS), max_size=25))
def test_slots_stay_dense_and_nobody_is_lost(slots: int, steps: list[tuple[list[int], list[int], set[int]]]) -> None:
    scheduler = Scheduler(slots=slots, max_encode_tokens=BUDGET)
    memory: dict[int, int] = {}  # by slot: whose state a cache would hold there
    everyone: list[Sequence] = []
    admitted: list[int] = []
    for arrivals, cancelled, endings in [*steps, *[([], [], set(range(8)))] * 110]:
        for source_tokens in arrivals:
            everyone.append(sequence(len(everyone), source_tokens))
            scheduler.add(everyone[-1])
        for number in cancelled:
            known = number in scheduler
            assert (scheduler.remove(number, Status.CANCELLED) is not None) == known
        plan = scheduler.plan()
        for move in plan.moves:
            memory[move.target] = memory[move.source]
        for newcomer in plan.admitted:
            assert newcomer.slot is not None
            memory[newcomer.slot] = newcomer.id
        admitted += [newcomer.id for newcomer in plan.admitted]
        running = scheduler.running
        scheduler.check_integrity()
        assert [s.slot for s in running] == list(range(len(running)))
        assert [memory[slot] for slot in range(len(running))] == [s.id for s in running]
        assert len(running) == slots or scheduler.waiting == 0 or len(plan.admitted) > 0
        longest = max((len(s.source_ids) for s in plan.admitted), default=0)
        assert len(plan.admitted) <= 1 or longest * len(plan.admitted) <= BUDGET
        for position in endings:
            if position < len(running):
                scheduler.remove(running[position].id, Status.FINISHED)
    assert scheduler.idle
    assert {s.status for s in everyone} <= {Status.FINISHED, Status.CANCELLED}
    assert admitted == sorted(admitted), "first come, first served"


def test_newcomers_fill_holes_and_the_last_ones_close_the_rest() -> None:
    scheduler = Scheduler(slots=5, max_encode_tokens=BUDGET)
    for number in range(5):
        scheduler.add(sequence(number))
    scheduler.plan()
    for number in (0, 1, 3):
        scheduler.remove(number, Status.FINISHED)
    scheduler.add(sequence(5))
    plan = scheduler.plan()
    assert [(s.id, s.slot) for s in plan.admitted] == [(5, 0)]
    assert plan.moves == [Move(source=4, target=1)]
    assert [s.id for s in scheduler.running] == [5, 4, 2]


def test_a_batch_that_would_be_mostly_padding_waits_for_the_next_step() -> None:
    scheduler = Scheduler(slots=5, max_encode_tokens=1000)
    for number, source_tokens in enumerate((2, 2, 30, 30)):
        scheduler.add(sequence(number, source_tokens))
    assert [s.id for s in scheduler.plan().admitted] == [0, 1]
    assert [s.id for s in scheduler.plan().admitted] == [2, 3]


def test_one_source_beyond_the_bound_is_admitted_alone() -> None:
    scheduler = Scheduler(slots=5, max_encode_tokens=BUDGET)
    for number in range(2):
        scheduler.add(sequence(number, BUDGET + 1))
    assert [s.id for s in scheduler.plan().admitted] == [0]
    assert [s.id for s in scheduler.plan().admitted] == [1]
