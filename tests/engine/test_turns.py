"""Who is admitted, and who steps when: no tensors."""

import random
from collections import Counter

import pytest

from server.engine.interface.parameters import GenerationParameters
from server.engine.scheduler import MOST_OVERTAKING, MOST_OVERTAKING_BATCH, Scheduler
from server.engine.sequence import Sequence, Status
from server.engine.turns import WEIGHTS, Kind, Turns

SLOTS = 8  # a light request has one row or two


def sequence(number: int, *, owner: int, beams: int = 1, batch: bool = False) -> Sequence:
    parameters = GenerationParameters(max_new_tokens=1, num_beams=beams)
    made = Sequence(id=number, source_ids=[3] * 4, parameters=parameters, owner=owner, batch=batch)
    made.begin(0)
    return made


def scheduler_with(*sequences: Sequence, spare: int = 2) -> Scheduler:
    made = Scheduler(slots=SLOTS, spare=spare, max_encode_tokens=10_000, max_decode_tokens=10_000)
    for each in sequences:
        made.add(each)
    return made


def admitted_by(scheduler: Scheduler, turn: Kind | None = None) -> list[int]:
    plan = scheduler.plan(turn)
    scheduler.check_integrity()
    return sorted(each.id for batch in plan.batches for each in batch)


def shares(costs: dict[Kind, float], steps: int = 4000) -> dict[Kind, float]:
    """What share of the time each kind gets when all are always there and their steps cost so much."""
    turns, spent = Turns(), dict.fromkeys(costs, 0.0)
    for _ in range(steps):
        turn = turns.next(costs)
        turns.spent(turn, costs[turn])
        spent[turn] += costs[turn]
    return {kind: seconds / sum(spent.values()) for kind, seconds in spent.items()}


@pytest.mark.parametrize("cost", [0.2, 1.0, 8.0])
def test_light_and_heavy_have_half_of_the_time_each(cost: float) -> None:
    assert shares({Kind.LIGHT: 1.0, Kind.HEAVY: cost})[Kind.LIGHT] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("others", [(Kind.LIGHT,), (Kind.HEAVY,), (Kind.LIGHT, Kind.HEAVY)])
def test_batch_work_gets_little_but_some(others: tuple[Kind, ...]) -> None:
    got = shares({Kind.BATCH: 8.0} | dict.fromkeys(others, 1.0))
    expected = WEIGHTS[Kind.BATCH] / (WEIGHTS[Kind.BATCH] + sum(WEIGHTS[kind] for kind in others))
    assert got[Kind.BATCH] == pytest.approx(expected, rel=0.2)


def test_short_steps_come_before_a_long_one() -> None:
    turns = Turns()
    for kind, seconds in ((Kind.HEAVY, 6.0), (Kind.LIGHT, 1.0)):  # both are known
        turns.next({kind})
        turns.spent(kind, seconds)
    turns.next({Kind.HEAVY})
    turns.spent(Kind.HEAVY, 6.0)
    taken = []
    for _ in range(7):
        taken.append(turns.next({Kind.LIGHT, Kind.HEAVY}))
        turns.spent(taken[-1], 1.0 if taken[-1] is Kind.LIGHT else 6.0)
    assert taken == [Kind.LIGHT] * 6 + [Kind.HEAVY]


@pytest.mark.parametrize("alone", [Kind.LIGHT, Kind.HEAVY, Kind.BATCH])
def test_nobody_saves_up_time_while_there_is_nothing_to_do(alone: Kind) -> None:
    turns, other = Turns(), Kind.HEAVY if alone is Kind.LIGHT else Kind.LIGHT
    for _ in range(1000):
        turns.next({alone})
        turns.spent(alone, 1.0)
    taken = []
    for _ in range(40):
        taken.append(turns.next({alone, other}))
        turns.spent(taken[-1], 1.0)
    expected = 40 * WEIGHTS[alone] / (WEIGHTS[alone] + WEIGHTS[other])
    assert taken.count(alone) == pytest.approx(expected, abs=2)


def test_a_request_is_heavy_if_it_has_asked_for_much() -> None:
    scheduler = scheduler_with(*(sequence(i, owner=1) for i in range(4)))
    assert scheduler.kinds == [Kind.HEAVY]
    for number in range(3):
        scheduler.remove(number, Status.CANCELLED)
    assert scheduler.kinds == [Kind.HEAVY], "to its end, so that lists of equal length stay together"
    scheduler.add(sequence(9, owner=9, batch=True))
    scheduler.add(sequence(10, owner=10, beams=2))
    assert scheduler.kinds == [Kind.LIGHT, Kind.HEAVY, Kind.BATCH]


def test_spare_slots_are_for_light_requests_beside_others() -> None:
    scheduler = scheduler_with(*(sequence(i, owner=1) for i in range(20)))
    assert len(admitted_by(scheduler)) == SLOTS
    for number in range(100, 104):
        scheduler.add(sequence(number, owner=number))
    scheduler.add(sequence(200, owner=200, batch=True))
    assert admitted_by(scheduler) == [100, 101]


@pytest.mark.parametrize("batch", [False, True])
def test_many_light_ones_have_no_more_than_the_slots(batch: bool) -> None:
    scheduler = scheduler_with(*(sequence(i, owner=i, batch=batch) for i in range(20)))
    assert len(admitted_by(scheduler)) == SLOTS


def test_a_small_request_does_not_wait_behind_a_large_one() -> None:
    scheduler = scheduler_with(*(sequence(i, owner=1, beams=8) for i in range(5)), sequence(9, owner=2))
    assert admitted_by(scheduler) == [0, 9]
    for _ in range(3):  # nor behind the rest of it
        scheduler.remove(min(each.sequence.id for each in scheduler.rows), Status.FINISHED)
        scheduler.remove(9, Status.FINISHED)
        scheduler.add(sequence(9, owner=2))
        assert 9 in admitted_by(scheduler)


def test_requests_share_the_slots_and_batch_comes_last() -> None:
    scheduler = scheduler_with(
        *(sequence(i, owner=7, batch=True) for i in range(3)),
        *(sequence(10 + i, owner=1) for i in range(12)),
        *(sequence(30 + i, owner=2) for i in range(3)),
        spare=0,
    )
    scheduler.plan()
    assert Counter(row.sequence.owner for row in scheduler.rows) == {1: 5, 2: 3}
    for each in list(scheduler.rows):
        scheduler.remove(each.sequence.id, Status.FINISHED)
    scheduler.plan()
    assert Counter(row.sequence.owner for row in scheduler.rows) == {1: 7, 7: 1}


def test_only_the_kind_whose_turn_it_is_is_admitted() -> None:
    scheduler = scheduler_with(sequence(0, owner=0, beams=8), sequence(1, owner=1))
    assert admitted_by(scheduler, Kind.LIGHT) == [1]
    assert admitted_by(scheduler, Kind.HEAVY) == [0]


@pytest.mark.parametrize(("batch", "most"), [(False, MOST_OVERTAKING), (True, MOST_OVERTAKING_BATCH)])
def test_nobody_waits_for_ever_behind_small_requests_that_keep_coming(batch: bool, most: int) -> None:
    scheduler = scheduler_with(*(sequence(i, owner=i) for i in range(SLOTS)))
    scheduler.plan()
    wide, ran = sequence(1000, owner=1000, beams=8, batch=batch), 0
    scheduler.add(wide)
    number = SLOTS
    for step in range(400):
        scheduler.add(sequence(number, owner=number))
        number += 1
        scheduler.remove(min(row.sequence.id for row in scheduler.rows), Status.FINISHED)
        ran += len(admitted_by(scheduler, (Kind.LIGHT, Kind.HEAVY, Kind.BATCH)[step % 3]))
        if wide.status is Status.RUNNING:
            break
    assert wide.status is Status.RUNNING
    assert ran <= most + SLOTS + 2


def test_small_requests_go_on_while_a_due_one_waits_for_others_of_its_size() -> None:
    scheduler = scheduler_with(sequence(0, owner=0, beams=8), spare=4)
    scheduler.plan()
    wide = sequence(1, owner=1, beams=4)
    scheduler.add(wide)
    for number in range(2, 2 + 3 * MOST_OVERTAKING):
        scheduler.add(sequence(number, owner=number))
        scheduler.plan()
        scheduler.check_integrity()
        scheduler.remove(number, Status.FINISHED)
    assert wide.status is Status.WAITING
    scheduler.remove(0, Status.FINISHED)
    assert admitted_by(scheduler) == [1]


@pytest.mark.parametrize("seed", range(20))
def test_however_they_come_and_go_nobody_is_overtaken_too_often(seed: int) -> None:
    chance = random.Random(seed)
    scheduler = scheduler_with(spare=chance.choice([0, 1, 2, 4]))
    live: list[Sequence] = []
    owner = 0
    for number in range(600):
        owner += not live or chance.random() < 0.6
        one = sequence(number, owner=owner, beams=chance.choice([1, 1, 1, 2, 5, 8]), batch=owner % 3 == 0)
        scheduler.add(one)
        live.append(one)
        admitted_by(scheduler, chance.choice([None, *scheduler.kinds]))
        for each in [each for each in live if each.status is Status.RUNNING and chance.random() < 0.25]:
            scheduler.remove(each.id, Status.FINISHED)
            live.remove(each)
    while live:
        admitted_by(scheduler)
        for each in [each for each in live if each.status is Status.RUNNING]:
            scheduler.remove(each.id, Status.FINISHED)
            live.remove(each)
    assert scheduler.idle, "somebody waits for ever"
