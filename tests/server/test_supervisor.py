import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.errors import (
    ApiError,
    ClientGoneError,
    GenerationError,
    OverloadedError,
    StartError,
    TimedOutError,
    UnavailableError,
)
from server.frontend.metrics import Metrics, VariantMetrics
from server.frontend.workers.generation import Generation
from server.frontend.workers.supervisor import ModelState, Supervisor
from server.frontend.workers.worker_process import WorkerProcess
from server.settings import ModelRequest, Settings
from server.text.tokenization import TextCodec
from tests.server.fake_engine import (
    BREAKS_THE_STEP,
    KILLS_IT_AFTER_A_TOKEN,
    KILLS_IT_ONCE,
    KILLS_THE_WORKER,
    LIMITS,
    RUNS_FOR_EVER,
    UNLOADABLE,
)
from tests.tiny_models import EOS_ID as TINY_EOS_ID
from tests.tiny_models import build_tokenizer

LABELS = {"model": "m", "variant": "v"}


CODEC = TextCodec(build_tokenizer(), TINY_EOS_ID)


class Harness:
    """A supervisor over a fake worker, with its metrics."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self._registry = CollectorRegistry()
        model = ModelRequest(ref="m@v", engine=EngineConfig(slots=LIMITS.slots))
        self.supervisor = Supervisor(
            "m@v",
            directory,
            model.engine,
            Settings(models=(model,), **{"restart_s": 0.05, **settings}),
            VariantMetrics(Metrics(self._registry), "m", "v"),
            worker_module="tests.server.fake_engine",
        )

    def submit(
        self,
        *sources: list[int],
        stream: bool = False,
        tokens: int = 1000,
        stop: str | None = None,
    ) -> list[Generation]:
        """Token 3 is "a", 4 is "b" and so on."""
        generations = [
            Generation(
                source,
                GenerationParameters(max_new_tokens=tokens, logprobs=True),
                CODEC,
                mode="stream" if stream else "unary",
                arrived_s=time.monotonic(),
                stops=() if stop is None else (stop,),
                streamed=stream,
            )
            for source in sources
        ]
        self.supervisor.accept(generations)
        return generations

    def count(self, name: str, **labels: str) -> float:
        value = self._registry.get_sample_value(name, {**LABELS, **labels})
        assert value is not None, name
        return value

    def outcomes(self) -> dict[str, int]:
        names = ("ok", "client_error", "rejected", "timeout", "cancelled", "error")
        counts = {name: int(self.count("nash_requests_total", outcome=name)) for name in names}
        return {name: count for name, count in counts.items() if count}

    async def eventually(self, condition: Callable[[], bool]) -> None:
        for _ in range(2000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it did not come about in 20 s")


@contextlib.asynccontextmanager
async def running(directory: Path, **settings: Any) -> AsyncIterator[Harness]:
    harness = Harness(directory, **settings)
    try:
        await harness.supervisor.start()
        yield harness
    finally:
        await harness.supervisor.stop()


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await coroutine

    asyncio.run(bounded())


async def error_of(generation: Generation) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await generation.result()
    return caught.value


def test_results_and_streams(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as harness:
            assert harness.supervisor.state is ModelState.READY
            unary = harness.submit([5, 6], [7])
            (stream,) = harness.submit([8, 9], stream=True)
            assert [(await generation.result()).tokens for generation in unary] == [[5, 6, 1], [7, 1]]
            told = [each async for each in stream.tokens()]
            assert [each.token.id for each in told] == (await stream.result()).tokens == [8, 9, 1]
            assert [each.last for each in told] == [False, False, True]
            assert told[-1].at_ms == (await stream.result()).timings.total_ms
            assert harness.outcomes() == {"ok": 3}
            assert harness.count("nash_request_duration_seconds_count", mode="unary") == 2
            assert harness.count("nash_generated_tokens_sum") == 3 + 2 + 3

    run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_a_generation_well_and_its_slot_is_free_at_once(tmp_path: Path, stream: bool) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as harness:
            # Each takes 5 s to its limit, and there are two slots.
            generations = harness.submit(*[[RUNS_FOR_EVER]] * 6, stream=stream, tokens=1000, stop="ccc")
            if stream:
                told = [[each async for each in generation.tokens()] for generation in generations]
                assert [[each.last for each in one] for one in told] == [[False, False, True]] * 6
                assert [[each.token.text for each in one] for one in told] == [["", "", ""]] * 6
            results = [await each.result() for each in generations]
            assert [each.tokens for each in results] == [[5, 5, 5]] * 6
            for generation, each in zip(generations, results, strict=True):
                (answer,), timings = generation.answers(each, by_token=False), each.timings
                assert (answer.text, answer.finish_reason) == ("", "stop_sequence")
                assert [token.logprob for token in answer.tokens] == [-0.5] * 3
                assert timings.time_per_output_token_ms is not None
                assert timings.total_ms == pytest.approx(timings.queue_ms + timings.encode_ms + timings.decode_ms)
                assert timings.time_to_first_token_ms + 2 * timings.time_per_output_token_ms == pytest.approx(
                    timings.total_ms
                )
            assert results[0].timings.queue_ms < results[-1].timings.queue_ms < 4000
            assert harness.outcomes() == {"ok": 6}
            assert harness.count("nash_generated_tokens_sum") == 6 * 3
            await harness.eventually(lambda: harness.count("nash_requests_running") == 0)

    run(scenario())


def test_a_watched_generation_that_sent_nothing_is_run_again_from_its_beginning(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as harness:
            (watched,) = harness.submit([RUNS_FOR_EVER], tokens=12, stop="c" * 10)
            await harness.eventually(lambda: harness.count("nash_requests_running") == 1)
            harness.submit([KILLS_IT_ONCE, 6])
            assert (await watched.result()).tokens == [5] * 10
            assert watched.deaths == 1

    run(scenario())


def test_a_model_that_does_not_load_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        harness = Harness(tmp_path / "broken")
        with pytest.raises(StartError, match="m@v cannot be loaded: the weights do not fit: publish them again"):
            await harness.supervisor.start()
        assert harness.supervisor.state is ModelState.FAILED
        with pytest.raises(UnavailableError, match="m@v is failed"):
            harness.submit([5])
        await harness.supervisor.stop()

    run(scenario())


def test_a_worker_that_cannot_be_spawned_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawn, refusals = WorkerProcess.spawn, [OSError(24, "Too many open files")] * 2

    async def spawn_later(*arguments: Any) -> WorkerProcess:
        if refusals:
            raise refusals.pop()
        return await spawn(*arguments)

    async def scenario() -> None:
        async with running(tmp_path) as harness:
            monkeypatch.setattr(WorkerProcess, "spawn", spawn_later)
            assert harness.supervisor.worker_pid is not None
            os.kill(harness.supervisor.worker_pid, signal.SIGKILL)
            await harness.eventually(lambda: not refusals and harness.supervisor.state is ModelState.READY)
            assert harness.count("nash_worker_restarts_total") == 3

    run(scenario())


def test_a_worker_that_cannot_be_spawned_at_the_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*arguments: Any) -> WorkerProcess:
        raise OSError(24, "Too many open files")

    async def scenario() -> None:
        monkeypatch.setattr(WorkerProcess, "spawn", refuse)
        harness = Harness(tmp_path)
        with pytest.raises(StartError, match=r"could not be started \(Too many open files\)"):
            await harness.supervisor.start()
        await harness.supervisor.stop()

    run(scenario())


def test_what_sent_nothing_yet_is_run_again_after_a_death(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as harness:
            first_pid = harness.supervisor.worker_pid
            generations = harness.submit([KILLS_IT_ONCE, 5], [6], [7])
            assert [(await each.result()).tokens for each in generations] == [[KILLS_IT_ONCE, 5, 1], [6, 1], [7, 1]]
            assert harness.supervisor.worker_pid != first_pid
            assert harness.outcomes() == {"ok": 3}
            assert harness.count("nash_worker_restarts_total") == 1

    run(scenario())


@pytest.mark.parametrize("poison", [KILLS_THE_WORKER, BREAKS_THE_STEP])
def test_what_kills_workers_kills_two_and_no_more(tmp_path: Path, poison: int) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as harness:
            (generation,) = harness.submit([poison])
            error = await error_of(generation)
            assert isinstance(error, GenerationError)
            assert "the worker of m@v ended with exit code" in str(error)
            await harness.eventually(lambda: harness.supervisor.state is ModelState.READY)
            (healthy,) = harness.submit([5])
            assert (await healthy.result()).tokens == [5, 1]
            assert harness.outcomes() == {"ok": 1, "error": 1}
            assert harness.count("nash_worker_restarts_total") == 2

    run(scenario())


@pytest.mark.parametrize(
    ("others_before", "poisons"),
    [(3, 1), pytest.param(20, 1, marks=pytest.mark.slow), pytest.param(20, 2, marks=pytest.mark.slow)],
)
def test_poison_fails_alone_beside_many_others(tmp_path: Path, others_before: int, poisons: int) -> None:
    async def scenario() -> None:
        async with running(tmp_path, restart_s=0.01) as harness:
            others = harness.submit(*[[6, 7]] * others_before)
            poison = harness.submit(*[[KILLS_THE_WORKER]] * poisons)
            others += harness.submit(*[[8]] * (50 - others_before if others_before == 20 else 3))
            for generation in poison:
                assert "while it ran this request alone" in str(await error_of(generation))
            results = [await each.result() for each in others]
            (late,) = harness.submit([5])
            assert [each.tokens for each in results] == [[6, 7, 1]] * others_before + [[8, 1]] * (
                len(others) - others_before
            )
            assert (await late.result()).tokens == [5, 1]
            assert harness.outcomes() == {"ok": len(others) + 1, "error": poisons}
            assert harness.count("nash_quarantined_total") == poisons

    run(scenario())


def test_the_only_one_that_may_run_again_is_no_culprit_for_that(tmp_path: Path) -> None:
    """A stream that has delivered killed the worker; what was there beside it at two deaths runs alone, and lives."""

    async def scenario() -> None:
        async with running(tmp_path, restart_s=0.01) as harness:
            (innocent,) = harness.submit([RUNS_FOR_EVER], tokens=400)
            for _ in range(2):
                await harness.eventually(lambda: harness.count("nash_requests_running") == 1)
                (stream,) = harness.submit([KILLS_IT_AFTER_A_TOKEN, 5], stream=True)
                assert isinstance(await error_of(stream), GenerationError)
                await harness.eventually(lambda: harness.supervisor.ready is not None)
            assert len((await innocent.result()).tokens) == 400
            assert harness.count("nash_quarantined_total") == 0

    run(scenario())


def test_suspects_that_are_cancelled_or_expire_hold_nobody_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, restart_s=0.01) as harness:
            slow = harness.submit([RUNS_FOR_EVER])
            poison = harness.submit([KILLS_THE_WORKER], [KILLS_THE_WORKER, 5])
            await harness.eventually(lambda: bool(harness.supervisor._suspects and harness.supervisor.ready))
            (late,) = harness.submit([5])
            for generation in (*slow, *poison):
                harness.supervisor.cancel(generation)
            assert (await late.result()).tokens == [5, 1]
            assert not harness.supervisor._suspects

    run(scenario())


def test_a_worker_that_hangs_is_replaced_and_its_work_done(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, watchdog_s=0.4) as harness:
            await asyncio.sleep(1.0)  # one that works is left alone
            assert harness.count("nash_watchdog_kills_total") == 0
            pid = harness.supervisor.worker_pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            (generation,) = harness.submit([5])
            assert (await generation.result()).tokens == [5, 1]
            assert harness.supervisor.worker_pid != pid
            assert harness.count("nash_watchdog_kills_total") == 1

    run(scenario())


def test_waiting_counts_anew_after_a_death(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, queue_s=1.0, restart_s=1.2) as harness:
            first, second = harness.submit([KILLS_IT_ONCE, 5], [6])
            assert (await first.result()).tokens == [KILLS_IT_ONCE, 5, 1]
            assert (await second.result()).tokens == [6, 1]

    run(scenario())


def test_a_stream_that_has_begun_is_not_run_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as harness:
            (generation,) = harness.submit([KILLS_IT_AFTER_A_TOKEN, 5], stream=True)
            tokens = generation.tokens()
            assert (await anext(tokens)).token.id == KILLS_IT_AFTER_A_TOKEN
            with pytest.raises(GenerationError):
                await anext(tokens)
            assert harness.count("nash_worker_restarts_total") == 1

    run(scenario())


def test_nothing_is_accepted_while_the_worker_is_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, restart_s=5.0) as harness:
            assert harness.supervisor.worker_pid is not None
            os.kill(harness.supervisor.worker_pid, signal.SIGKILL)
            await harness.eventually(lambda: harness.supervisor.state is ModelState.FAILED)
            with pytest.raises(UnavailableError, match="try again in a moment") as caught:
                harness.submit([5])
            assert caught.value.retry_after_s is not None
            assert caught.value.retry_after_s > 5.0  # the pause and the load

    run(scenario())


def test_a_full_queue_refuses_at_once_and_all_or_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, max_queue=3) as harness:
            generations = harness.submit(*[[RUNS_FOR_EVER]] * 4)
            began_s = time.monotonic()
            with pytest.raises(OverloadedError, match="2 of at most 3 rows are waiting, 2 more came") as caught:
                harness.submit([5], [6])
            assert time.monotonic() - began_s < 0.1
            assert caught.value.retry_after_s is not None
            assert caught.value.retry_after_s >= 1
            (last,) = harness.submit([7])
            for generation in generations:
                harness.supervisor.cancel(generation)
            assert (await last.result()).tokens == [7, 1]
            assert isinstance(await error_of(generations[0]), ClientGoneError)
            assert harness.outcomes() == {"ok": 1, "cancelled": 4}

    run(scenario())


def test_time_in_the_queue_and_in_all_is_bounded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, queue_s=0.1, total_s=0.4) as harness:
            slow = harness.submit(*[[RUNS_FOR_EVER]] * 2)
            (waiting,) = harness.submit([5])
            assert "no slot came free" in str(await error_of(waiting))
            for generation in slow:
                error = await error_of(generation)
                assert isinstance(error, TimedOutError)
                assert "more than 0.4 s" in str(error)
            (after,) = harness.submit([6])
            assert (await after.result()).tokens == [6, 1], "what timed out gave its slot back"
            assert harness.outcomes() == {"ok": 1, "timeout": 3}

    run(scenario())


def test_stop_ends_what_runs_and_leaves_no_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as harness:
            (generation,) = harness.submit([RUNS_FOR_EVER])
            pid = harness.supervisor.worker_pid
            assert pid is not None
            await harness.supervisor.stop()
            error = await error_of(generation)
            assert isinstance(error, UnavailableError)
            assert "shutting down" in str(error)
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    run(scenario())


def test_what_sleeps_has_no_worker_and_is_loaded_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as harness:
            supervisor = harness.supervisor
            pid, known = supervisor.worker_pid, supervisor.ready
            assert pid is not None
            await supervisor.sleep()
            assert (supervisor.state, supervisor.available, supervisor.worker_pid) == (ModelState.IDLE, True, None)
            assert supervisor.reported is known
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
            with pytest.raises(UnavailableError):
                harness.submit([5])
            supervisor.rouse()
            assert supervisor.state is ModelState.LOADING
            await supervisor.loaded()
            (generation,) = harness.submit([5, 6])
            assert (await generation.result()).tokens == [5, 6, 1]
            assert harness.count("nash_worker_restarts_total") == 0

    run(scenario())


def test_what_cannot_be_loaded_again_sleeps_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        async with running(folder) as harness:
            await harness.supervisor.sleep()
            (folder / UNLOADABLE).touch()
            for _ in range(2):
                harness.supervisor.rouse()
                with pytest.raises(StartError, match="cannot be loaded"):
                    await harness.supervisor.loaded()
                assert harness.supervisor.state is ModelState.IDLE
            (folder / UNLOADABLE).unlink()
            harness.supervisor.rouse()
            await harness.supervisor.loaded()
            assert harness.supervisor.state is ModelState.READY

    run(scenario())
