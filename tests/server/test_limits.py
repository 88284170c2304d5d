"""The bounds on what waits: a variant's queue, and the lock of comparisons."""

import asyncio
import math
from typing import Any

import pytest

from server.engine.interface.parameters import GenerationParameters
from server.errors import InvalidInputError, OverloadedError, TimedOutError
from server.frontend.bounded_lock import BoundedLock
from server.frontend.workers.admission import Admission, Work


def rows(count: int, tokens: int = 0) -> Work:
    return Work(rows=count, tokens=tokens)


def admission(*, slots: int = 2, max_queue: int = 8, max_queue_tokens: int = 1000) -> Admission:
    return Admission(slots=slots, max_queue=max_queue, max_queue_tokens=max_queue_tokens)


def check(made: Admission, wanted: Work, *, batch: bool = False, within_s: float = math.inf) -> None:
    made.check(wanted, batch=batch, within_s=within_s)


def retry_after(made: Admission, wanted: Work, **how: Any) -> float | None:
    with pytest.raises(OverloadedError) as caught:
        check(made, wanted, **how)
    return caught.value.retry_after_s


def test_slots_and_queue_may_be_full_and_no_more() -> None:
    made = admission(max_queue=3)
    check(made, rows(5))
    made.enter(1, rows(4), batch=False)
    check(made, rows(1))
    with pytest.raises(OverloadedError, match="2 of at most 3 rows are waiting, 2 more came"):
        check(made, rows(2))
    made.leave(1, rows(4), batch=False)
    check(made, rows(5))
    with pytest.raises(InvalidInputError, match="asks for 6 rows"):
        check(made, rows(6))


def test_beams_and_tokens_count() -> None:
    parameters = GenerationParameters(max_new_tokens=10, num_beams=4)
    assert Work.of(parameters, source_tokens=7, texts=2) == Work(rows=8, tokens=7 + 80)
    made = admission(max_queue_tokens=100)
    made.enter(1, rows(1, 60), batch=False)
    check(made, rows(1, 40))
    with pytest.raises(OverloadedError, match="60 tokens are to be read and made, 41 more came"):
        check(made, rows(1, 41))
    with pytest.raises(InvalidInputError, match="may take 101 tokens"):
        check(made, rows(1, 101))


def test_a_full_queue_still_takes_what_is_small_or_comes_before() -> None:
    made = admission(slots=8, max_queue=10)
    made.enter(1, rows(18), batch=True)
    retry_after(made, rows(3), batch=True)
    check(made, rows(18))  # batch priority takes only the room that others leave
    made.enter(2, rows(18), batch=False)
    retry_after(made, rows(3))
    for number in range(3, 7):
        check(made, rows(2))
        made.enter(number, rows(2), batch=False)
    retry_after(made, rows(2))


def test_the_time_to_come_back_is_when_there_is_room_again() -> None:
    made = admission(max_queue=8)
    made.enter(1, rows(10), batch=False)
    assert retry_after(made, rows(1)) == 1, "nothing was measured yet"
    made.finished(1, 4.0)  # with two slots, a row ends every two seconds
    assert retry_after(made, rows(1)) == 2
    assert retry_after(made, rows(4)) == 8
    for _ in range(100):
        made.finished(1, 0.01)
    assert retry_after(made, rows(4)) == 1


def test_who_would_wait_too_long_is_refused_at_once() -> None:
    made = admission(slots=2, max_queue=100)
    for number in range(6):
        check(made, rows(1), within_s=0.0)  # nothing was measured yet
        made.enter(number, rows(1), batch=False)
    made.finished(1, 4.0)
    check(made, rows(1), within_s=15.1)  # behind six rows: three times four seconds, with a margin
    assert retry_after(made, rows(1), within_s=14.9) == 2
    check(made, rows(1), within_s=math.inf)


def test_a_large_request_is_ahead_only_once_and_of_small_ones_not_at_all() -> None:
    made = admission(slots=4, max_queue=100)
    made.finished(1, 4.0)
    for _ in range(50):
        made.enter(1, rows(1), batch=False)
    check(made, rows(2), within_s=5.1)
    retry_after(made, rows(2), within_s=4.9)
    check(made, rows(1), within_s=0.0)
    made.enter(2, rows(50), batch=True)
    check(made, rows(2), within_s=5.1)
    retry_after(made, rows(2), within_s=5.1, batch=True)
    for number in range(3, 7):
        check(made, rows(1), within_s=0.0)
        made.enter(number, rows(1), batch=False)
    retry_after(made, rows(1), within_s=0.0)


def test_the_lock_holds_one_at_a_time() -> None:
    async def scenario() -> None:
        lock = BoundedLock(max_waiting=1, wait_s=0.05)
        inside = 0

        async def pass_through() -> None:
            nonlocal inside
            async with lock.turn():
                inside += 1
                await asyncio.sleep(0)
                assert inside == 1
                inside -= 1

        await asyncio.gather(pass_through(), pass_through())
        async with lock.turn():
            waiting = asyncio.create_task(pass_through())
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError, match="1 comparisons are already waiting"):
                await pass_through()
            with pytest.raises(TimedOutError, match=r"waited 0\.05 s"):
                await waiting
        await pass_through()

    asyncio.run(scenario())
