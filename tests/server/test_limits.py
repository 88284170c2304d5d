"""The bounds on what waits: a variant's queue, and the lock of comparisons."""

import asyncio

import pytest

from server.errors import OverloadedError, TimedOutError
from server.frontend.bounded_lock import BoundedLock
from server.frontend.workers.admission import Admission


def retry_after(admission: Admission, pending: int) -> float | None:
    with pytest.raises(OverloadedError) as caught:
        admission.check(pending, 1)
    return caught.value.retry_after_s


def test_slots_and_queue_may_be_full_and_no_more() -> None:
    admission = Admission(slots=2, max_queue=3)
    admission.check(0, 5)
    admission.check(4, 1)
    with pytest.raises(OverloadedError, match="2 of at most 3 are waiting, 2 more came"):
        admission.check(4, 2)


def test_the_time_to_come_back_follows_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("server.frontend.workers.admission.time.monotonic", lambda: now_s)
    admission = Admission(slots=2, max_queue=8)
    assert retry_after(admission, 10) == 1, "nothing was measured yet"
    for _ in range(5):  # one in two seconds
        admission.finished()
        now_s += 2.0
    assert retry_after(admission, 10) == 16, "eight wait, two seconds each"
    for _ in range(100):  # a thousand in a second
        now_s += 0.001
        admission.finished()
    assert retry_after(admission, 10) == 1


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
