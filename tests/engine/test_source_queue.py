"""Which sources are encoded at once, which in slices, and for how long."""

from collections.abc import Sequence as Collection

import pytest

from server.engine import source_queue
from server.engine.interface.parameters import GenerationParameters
from server.engine.sequence import Sequence
from server.engine.source_queue import LEAST_SHARE, LONGEST_PAUSE_S, LONGEST_STEP, SourceQueue
from tests.engine.made_up_backend import MadeUpBackend

POSITION_S = 0.001
STEP_S = 0.004
SHARE = LONGEST_STEP - 1  # of a step that takes as long beside slices as without


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


class SlicedMadeUpBackend(MadeUpBackend):
    """Encodes a position in POSITION_S of a clock of its own."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(slots=8)
        self.clock = clock
        self.left: int | None = None  # positions of the source that is under way
        self.slices: list[float | None] = []

    def encode(self, sources: Collection[list[int]], slots: Collection[Collection[int]]) -> int:
        self.clock.now_s += POSITION_S * sum(map(len, sources))
        return super().encode(sources, slots)

    def begin_source(self, source: list[int], slots: Collection[int]) -> None:
        assert self.left is None, "two at once"
        self.left = len(source)

    def go_on(self, seconds: float | None) -> bool:
        assert self.left is not None
        self.slices.append(seconds)
        done = self.left if seconds is None else min(self.left, int(seconds / POSITION_S))
        self.clock.now_s += POSITION_S * done
        self.left -= done
        if self.left:
            return False
        self.left = None
        return True

    def drop_source(self) -> None:
        assert self.left is not None
        self.left = None


def newcomer(number: int, length: int) -> Sequence:
    sequence = Sequence(id=number, source_ids=[5] * length, parameters=GenerationParameters(max_new_tokens=4))
    sequence.begin(0)
    sequence.rows[0].slot = number
    return sequence


SHORT = int(LONGEST_PAUSE_S / POSITION_S)
LONG = 3 * SHORT


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> SlicedMadeUpBackend:
    clock = Clock()
    monkeypatch.setattr(source_queue, "time", clock)
    return SlicedMadeUpBackend(clock)


@pytest.fixture
def queue(backend: SlicedMadeUpBackend) -> SourceQueue:
    """One that has seen how long a position takes."""
    queue = SourceQueue(backend)
    assert len(queue.run([[newcomer(0, SHORT)]], step_s=None)) == 1
    return queue


def test_nobody_waits_where_nobody_runs(queue: SourceQueue, backend: SlicedMadeUpBackend) -> None:
    first, second = newcomer(1, LONG), newcomer(2, LONG)
    assert queue.run([[first], [second]], step_s=None) == [first, second]
    assert backend.slices == []


def test_a_short_source_is_encoded_at_once(queue: SourceQueue, backend: SlicedMadeUpBackend) -> None:
    short = newcomer(1, SHORT - 1)
    assert queue.run([[short]], step_s=STEP_S) == [short]
    assert backend.slices == []


def test_a_long_source_takes_its_share_of_each_step(queue: SourceQueue, backend: SlicedMadeUpBackend) -> None:
    long = newcomer(1, LONG)
    runs = [queue.run([[long]], step_s=STEP_S)]
    while queue:
        runs.append(queue.run([], step_s=STEP_S))
    assert runs == [*[[]] * (len(runs) - 1), [long]]
    assert max(filter(None, backend.slices)) < 2 * SHARE * STEP_S
    assert len(runs) == pytest.approx(LONG * POSITION_S / (SHARE * STEP_S), abs=1), "what a slice leaves is used later"


def test_a_step_that_slices_make_longer_leaves_less_to_them(queue: SourceQueue, backend: SlicedMadeUpBackend) -> None:
    assert queue.run([[newcomer(1, LONG)]], step_s=STEP_S) == []
    backend.slices.clear()
    queue._credit_s = 0.0
    queue.run([], step_s=1.1 * STEP_S)
    assert backend.slices[0] == pytest.approx((LONGEST_STEP - 1.1) * STEP_S)
    queue._credit_s = 0.0
    queue.run([], step_s=10 * STEP_S)  # others came
    assert backend.slices[1] == pytest.approx(LEAST_SHARE * 10 * STEP_S)


def test_steps_after_slices_are_the_measure_for_the_next_ones(queue: SourceQueue, backend: SlicedMadeUpBackend) -> None:
    assert queue.run([[newcomer(1, LONG)]], step_s=STEP_S) == []
    while queue:
        queue.run([], step_s=STEP_S)
    for _ in range(100):
        queue.run([], step_s=3 * STEP_S)
    backend.slices.clear()
    queue.run([[newcomer(2, LONG)]], step_s=3 * STEP_S)
    assert backend.slices == [pytest.approx(SHARE * 3 * STEP_S)]


def test_each_one_that_waits_adds_its_share(queue: SourceQueue, backend: SlicedMadeUpBackend) -> None:
    several = [newcomer(number, LONG) for number in range(1, 6)]
    assert queue.run([several], step_s=STEP_S) == []
    assert backend.slices == pytest.approx([5 * SHARE * STEP_S])


def test_the_time_that_one_leaves_is_the_next_ones(queue: SourceQueue, backend: SlicedMadeUpBackend) -> None:
    first, second = newcomer(1, LONG), newcomer(2, LONG)
    step_s = (LONG + 10) * POSITION_S / (2 * SHARE)
    assert queue.run([[first, second]], step_s=step_s) == [first]
    assert backend.slices[1] == pytest.approx(10 * POSITION_S)


def test_a_short_source_passes_a_long_one(queue: SourceQueue, backend: SlicedMadeUpBackend) -> None:
    long, short = newcomer(1, LONG), newcomer(2, 1)
    assert queue.run([[long]], step_s=STEP_S) == []
    assert queue.run([[short]], step_s=STEP_S) == [short]
    assert long in queue
    assert queue.run([], step_s=None) == [long]
    assert backend.slices[-1] is None


def test_a_short_source_that_comes_with_a_long_one_does_not_wait_for_it(queue: SourceQueue) -> None:
    long, short = newcomer(1, LONG), newcomer(2, 1)
    assert queue.run([[long], [short]], step_s=STEP_S) == [short]
    assert long in queue


def test_short_sources_that_never_end_do_not_hold_a_long_one(queue: SourceQueue) -> None:
    long, steps = newcomer(1, LONG), 1
    ready = queue.run([[long]], step_s=STEP_S)
    while long not in ready:
        ready = queue.run([[newcomer(2, 1)]], step_s=STEP_S)
        steps += 1
        assert steps < 1000
    assert steps == pytest.approx(LONG * POSITION_S / (SHARE * STEP_S), abs=2)


def test_where_nobody_runs_a_short_source_is_decoded_before_a_long_one_goes_on(queue: SourceQueue) -> None:
    long, short = newcomer(1, LONG), newcomer(2, 1)
    queue.run([[long]], step_s=STEP_S)
    assert queue.run([[short]], step_s=None) == [short]
    assert queue.run([], step_s=None) == [long]


def test_a_long_source_that_everybody_left_is_encoded_to_its_end(queue: SourceQueue) -> None:
    first, second = newcomer(1, LONG), newcomer(2, LONG)
    queue.run([[first, second]], step_s=STEP_S)
    assert queue.run([], step_s=None) == [first, second]
    assert not queue


@pytest.mark.parametrize("dropped", [0, 1])
def test_what_is_cancelled_is_given_up(queue: SourceQueue, backend: SlicedMadeUpBackend, dropped: int) -> None:
    several = [newcomer(1, LONG), newcomer(2, LONG)]
    queue.run([several], step_s=STEP_S)
    queue.drop(several[dropped])
    assert (backend.left is None) == (dropped == 0)
    queue.drop(newcomer(3, LONG))  # is not here
    assert queue.run([], step_s=None) == [several[1 - dropped]]


def test_a_backend_without_slices_encodes_all_at_once() -> None:
    plain = MadeUpBackend(slots=8)
    queue = SourceQueue(plain)
    for number in range(2):
        long = newcomer(number, 10_000)
        assert queue.run([[long]], step_s=1e-9) == [long]
    assert plain.encoded == [1, 1]
