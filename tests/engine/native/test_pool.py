"""How the operator divides work among threads, and how they meet: the headers alone, built for these tests."""

import ctypes
import faulthandler
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HEADERS = HERE.parents[2] / "server" / "engine" / "native" / "operator"
COMPILER = next((found for found in map(shutil.which, ("c++", "g++", "clang++")) if found), None)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    assert COMPILER is not None
    built = tmp_path_factory.mktemp("driver") / "driver.so"
    source = HERE / "pool_driver.cpp"
    warnings = ("-Wall", "-Wextra", "-Werror")
    subprocess.run(
        [COMPILER, "-std=c++20", "-O2", "-pthread", "-shared", "-fPIC", *warnings, f"-I{HEADERS}", source, "-o", built],
        check=True,
    )
    library = ctypes.CDLL(str(built))
    library.pace_create.restype = ctypes.c_void_p
    library.pace_create.argtypes = (ctypes.c_int32, ctypes.POINTER(ctypes.c_double))
    library.pace_destroy.argtypes = (ctypes.c_void_p,)
    library.pace_threads.argtypes = (ctypes.c_void_p, ctypes.c_double, ctypes.c_int32, ctypes.c_int32, ctypes.c_double)
    library.pace_took.argtypes = (ctypes.c_void_p, ctypes.c_double)
    library.disagreements.argtypes = (
        ctypes.c_int32,
        ctypes.POINTER(ctypes.c_int32),
        ctypes.c_uint32,
        ctypes.c_int32,
    )
    return library


@pytest.fixture(autouse=True)
def _no_hanging() -> Iterator[None]:
    """Threads that wait for each other for ever cannot be interrupted: end the run, and say where it was."""
    faulthandler.dump_traceback_later(180, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


COUNTS = [*range(1, 70), 100, 127, 128, 129, 255, 256, 1000, 1004, 2031, 250_112 // 32, 2**31 - 1]


def test_every_unit_is_one_threads(driver: ctypes.CDLL) -> None:
    ends = (ctypes.c_int32 * 2)()
    for threads in range(1, 129):
        for count in COUNTS:
            reached, sizes = 0, []
            for thread in range(threads):
                driver.divide_evenly(count, thread, threads, ends)
                assert ends[0] == reached
                reached = ends[1]
                sizes.append(ends[1] - ends[0])
            assert reached == count
            assert sizes[0] == max(sizes) <= min(sizes) + 1


def divide(driver: ctypes.CDLL, tiles: int, rows: int, threads: int, block: int = 8) -> tuple[list[int], list[int]]:
    """How often each output is computed, and how many are each thread's."""
    computed, loads = (ctypes.c_int32 * (tiles * rows))(), (ctypes.c_int32 * threads)()
    driver.divide_products(tiles, rows, block, threads, computed, loads)
    return list(computed), list(loads)


def test_every_output_is_computed_once(driver: ctypes.CDLL) -> None:
    chosen = random.Random(13)
    for threads in range(1, 129):
        for _ in range(12):
            tiles, rows = chosen.choice([1, 2, 16, 24, 36, 48, 64, 96, chosen.randint(1, 200)]), chosen.randint(1, 70)
            computed, loads = divide(driver, tiles, rows, threads)
            assert set(computed) == {1}, (threads, tiles, rows)
            assert loads[0] > 0


@pytest.mark.parametrize("threads", [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128])
@pytest.mark.parametrize("tiles", [16, 24, 48, 64, 96, 1004])
def test_rows_are_divided_where_tiles_alone_are_uneven(driver: ctypes.CDLL, tiles: int, threads: int) -> None:
    _, one_row = divide(driver, tiles, 1, threads)
    assert max(one_row) == -(-tiles // threads)  # tiles stay whole
    assert one_row.count(0) == max(0, threads - tiles)
    _, loads = divide(driver, tiles, 128, threads)
    assert min(loads) > 0
    assert max(loads) <= 1.34 * tiles * 128 / threads


def test_tiles_stay_whole_where_that_is_even(driver: ctypes.CDLL) -> None:
    for threads in (2, 4, 8, 16):
        _, loads = divide(driver, 16, 32, threads)
        assert set(loads) == {16 * 32 // threads}
        assert all(load % 32 == 0 for load in loads)


def share_out(driver: ctypes.CDLL, domains: list[int], tiles: int, rows: int, **how: int) -> list[int]:
    """The rows that each thread had, all outputs being computed once in every division."""
    size, loads = len(domains), (ctypes.c_int64 * len(domains))()
    how = {"divisions": 3, "runs": 20, "slow_us": 0} | how
    wrong = driver.share_products(size, (ctypes.c_int32 * size)(*domains), tiles, rows, *how.values(), loads)
    assert wrong == 0
    return list(loads)


@pytest.mark.parametrize("domains", [[0], [0, 0], [0, 0, 0], [0] * 8, [0] * 11, [0, 0, 0, 1, 1, 1]])
def test_every_output_is_computed_once_where_threads_take_from_each_other(
    driver: ctypes.CDLL, domains: list[int]
) -> None:
    for tiles, rows in ((1, 16), (2, 40), (7, 64), (16, 17), (24, 130)):
        loads = share_out(driver, domains, tiles, rows)
        assert sum(loads) == 3 * 20 * tiles * rows


def test_a_slow_thread_is_relieved(driver: ctypes.CDLL) -> None:
    swift, slow = share_out(driver, [0, 0], 32, 64, slow_us=500)
    assert swift > 2 * slow


def test_few_rows_stay_where_they_are(driver: ctypes.CDLL) -> None:
    swift, slow = share_out(driver, [0, 0], 32, 15, slow_us=500)
    assert swift == slow


def test_nothing_is_taken_from_another_cache_domain(driver: ctypes.CDLL) -> None:
    other, slow = share_out(driver, [0, 1], 32, 64, slow_us=500)
    assert other == slow


def test_the_numbers_of_divisions_may_run_out(driver: ctypes.CDLL) -> None:
    runs = 2**14 + 10
    assert sum(share_out(driver, [0, 0], 3, 16, divisions=1, runs=runs)) == runs * 3 * 16


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 32, 128])
def test_threads_meet_at_barriers(driver: ctypes.CDLL, size: int) -> None:
    assert driver.disagreements(size, None, 0, 3 if size > 32 else 20) == 0


@pytest.mark.parametrize("domains", [[0, 0, 0, 1, 1, 1], [0, 1, 2, 3], [0] * 3 + [1] * 20 + [2]])
def test_threads_meet_across_cache_domains(driver: ctypes.CDLL, domains: list[int]) -> None:
    assert driver.disagreements(len(domains), (ctypes.c_int32 * len(domains))(*domains), 0, 20) == 0


@pytest.mark.parametrize("before", [1, 40, 700])
def test_the_count_of_barriers_may_wrap(driver: ctypes.CDLL, before: int) -> None:
    for start in (2**31, 2**32):
        assert driver.disagreements(9, None, start - before, 60) == 0


@pytest.mark.parametrize("size", [2, 5, 20])
def test_a_forked_child_computes_alone(driver: ctypes.CDLL, size: int) -> None:
    assert driver.after_fork(size) == 0


class Machine:
    """A pace that runs passes of a made-up machine: `cost_ns(threads)` is what one takes."""

    def __init__(self, driver: ctypes.CDLL, pace: int, alone_ns: float) -> None:
        self._driver, self._pace = driver, pace
        self.alone_ns, self.barriers = alone_ns, 50
        self._now_ns = 0.0

    def run(self, passes: int, cost_ns: Callable[[int], float]) -> list[int]:
        """Threads of each pass."""
        chosen = []
        for _ in range(passes):
            threads = self._driver.pace_threads(self._pace, self.alone_ns, self.barriers, 0, self._now_ns)
            took_ns = cost_ns(threads)
            self._driver.pace_took(self._pace, took_ns)
            self._now_ns += took_ns + 1e5
            chosen.append(threads)
        return chosen


@contextmanager
def machine(driver: ctypes.CDLL, size: int, alone_ns: float, barrier_ns: Callable[[int], float]) -> Iterator[Machine]:
    counts = [size]
    while counts[-1] > 1:
        counts.append((counts[-1] + 1) // 2)
    pace = driver.pace_create(size, (ctypes.c_double * len(counts))(*map(barrier_ns, counts)))
    try:
        yield Machine(driver, pace, alone_ns)
    finally:
        driver.pace_destroy(pace)


def barrier_ns(threads: int) -> float:
    return 100.0 * threads


def ideal(alone_ns: float) -> Callable[[int], float]:
    return lambda threads: alone_ns / threads + 50 * barrier_ns(threads)


def share_of(chosen: list[int], threads: int) -> float:
    return chosen.count(threads) / len(chosen)


@pytest.mark.parametrize(
    ("alone_ns", "threads"), [(2e3, 1), (4e4, 2), (4e5, 8), (1.6e6, 16), (6e6, 32), (4e7, 64), (1e9, 64)]
)
def test_work_decides_how_many(driver: ctypes.CDLL, alone_ns: float, threads: int) -> None:
    with machine(driver, 64, alone_ns, barrier_ns) as made_up:
        chosen = made_up.run(3000, ideal(alone_ns))
    assert chosen[0] == threads
    assert share_of(chosen, threads) > 0.98


def test_passes_of_different_size_are_chosen_for_by_themselves(driver: ctypes.CDLL) -> None:
    with machine(driver, 64, 1e9, barrier_ns) as made_up:
        for _ in range(50):
            made_up.alone_ns = 1e9
            assert made_up.run(1, ideal(1e9))[0] >= 32
            made_up.alone_ns = 2e3
            assert made_up.run(1, ideal(2e3))[0] <= 2


def test_contention_halves_and_quiet_brings_back(driver: ctypes.CDLL) -> None:
    """Another process has 20 of 32 cores: with more than 12 threads one of them is always waited for."""

    def contended(threads: int) -> float:
        return ideal(4e7)(threads) + (8e6 if threads > 12 else 0.0)

    with machine(driver, 32, 4e7, barrier_ns) as made_up:
        assert share_of(made_up.run(300, ideal(4e7)), 32) > 0.95
        chosen = made_up.run(4000, contended)
        assert chosen.index(8) < 24  # soon, and not by way of one thread
        assert share_of(chosen[24:], 8) > 0.95
        assert chosen.count(1) == 0
        back = made_up.run(4000, ideal(4e7))
        assert share_of(back[-2000:], 32) > 0.98


def test_one_slow_pass_costs_little(driver: ctypes.CDLL) -> None:
    with machine(driver, 2, 1e6, barrier_ns) as made_up:
        made_up.run(500, ideal(1e6))
        chosen = made_up.run(1, lambda threads: 9e6) + made_up.run(200, ideal(1e6))
        assert share_of(chosen, 2) > 0.98


@pytest.mark.parametrize(
    ("held_up", "held_up_alone", "times"),
    [(0.005, 0.002, 8), (0.05, 0.02, 8), (0.1, 0.05, 2), (0.3, 0.1, 4), (0.5, 0.2, 4), (0.02, 0.02, 30)],
)
def test_other_processes_now_and_then(driver: ctypes.CDLL, held_up: float, held_up_alone: float, times: float) -> None:
    """Of two threads and of one, whichever is better on the whole: within 3 % of the one that knows beforehand."""
    chance, passes = random.Random(5), 10_000

    def cost_ns(threads: int) -> float:
        hit = chance.random() < (held_up if threads == 2 else held_up_alone)
        return 1e6 * ((0.55 if threads == 2 else 1.0) + (chance.expovariate(1 / times) if hit else 0.0))

    spent: list[float] = []

    def counted(threads: int) -> float:
        spent.append(cost_ns(threads))
        return spent[-1]

    with machine(driver, 2, 1e6, barrier_ns) as made_up:
        made_up.run(passes, counted)
    mean = {1: 1.0 + held_up_alone * times, 2: 0.55 + held_up * times}
    spread = (held_up * 2 * times**2 / passes) ** 0.5  # of a mean of so many passes
    assert sum(spent) / passes / 1e6 < 1.03 * min(mean.values()) + 3 * spread


def test_no_more_threads_than_memory_feeds(driver: ctypes.CDLL) -> None:
    """From 8 threads on memory bounds: 64 are no faster, and the barriers say nothing of it."""

    def bounded(threads: int) -> float:
        return 1e7 / min(threads, 8) + 50 * barrier_ns(threads)

    with machine(driver, 64, 1e7, barrier_ns) as made_up:
        chosen = made_up.run(4000, bounded)
    assert chosen[0] == 32
    assert share_of(chosen[-1000:], 8) > 0.98


def test_long_passes_try_more_threads_soon(driver: ctypes.CDLL) -> None:
    """A second is enough for what took cores away to be gone, though no sixteen passes went by."""
    with machine(driver, 4, 1e9, barrier_ns) as made_up:
        made_up.run(20, ideal(1e9))
        assert 2 in made_up.run(3, lambda threads: 9e9 if threads == 4 else ideal(1e9)(threads))
        assert made_up.run(8, ideal(1e9))[-1] == 4
