"""Keeps one variant's worker alive, and keeps the promises made to its callers.

Every accepted generation ends exactly once. If a worker dies, generations that have sent nothing yet are run again,
until it is known which of them it dies of (`suspects.py`); the others fail. A worker that hangs is ended.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import count
from pathlib import Path

from model_store.version.manifest import FileEntry
from server.engine.interface.config import EngineConfig
from server.errors import (
    ApiError,
    ClientGoneError,
    GenerationError,
    InvalidInputError,
    StartError,
    TimedOutError,
    UnavailableError,
)
from server.frontend.metrics import VariantMetrics
from server.frontend.workers.admission import NOTHING, Admission, Work
from server.frontend.workers.generation import Generation
from server.frontend.workers.suspects import Suspects
from server.frontend.workers.worker_process import WorkerProcess
from server.messages import (
    Cancel,
    Failed,
    Finished,
    Load,
    LoadFailed,
    Ping,
    Pong,
    Ready,
    Report,
    Stats,
    Submit,
    TokenReport,
    Tokens,
)
from server.settings import Settings
from server.telemetry.logs import worker_environment

_LONGEST_PAUSE_S = 30.0
_ERRORS: dict[str, type[ApiError]] = {
    "validation": InvalidInputError,
    "timeout": TimedOutError,
    "generation": GenerationError,
}

_SHUTTING_DOWN = "the server is shutting down: send the request again in a moment"

_logger = logging.getLogger(__name__)


class ModelState(StrEnum):
    """The state of a variant, as `/models` reports it."""

    LOADING = "loading"
    READY = "ready"
    IDLE = "idle"  # unloaded for want of requests: the next one loads it
    DRAINING = "draining"
    FAILED = "failed"


class Supervisor:
    """One variant's worker, its restarts, and the generations in progress on it."""

    def __init__(
        self,
        ref: str,
        directory: Path,
        engine: EngineConfig,
        settings: Settings,
        metrics: VariantMetrics,
        *,
        files: Sequence[FileEntry] = (),
        worker_module: str = "server.worker",
    ) -> None:
        """`files` are those of a version in the store, whose bytes every worker verifies as it loads them."""
        self.state = ModelState.LOADING
        self.ready: Ready | None = None  # what the current worker reported after loading; None until then
        self.reported: Ready | None = None  # what the last one did that was loaded
        self.asleep = False  # without a worker until `rouse`
        self.on_request: Callable[[], None] = lambda: None  # hears of what callers send
        self._ref = ref
        named = tuple((file.path, file.sha256, file.size) for file in files)
        self._load = Load(directory=str(directory), config=engine, files=named)
        self._settings = settings
        self._metrics = metrics
        self._worker_module = worker_module
        self._admission = Admission(
            slots=engine.slots, max_queue=settings.max_queue, max_queue_tokens=settings.max_queue_tokens
        )
        self._ids = count(1)
        self._pending: dict[int, Generation] = {}  # accepted and not ended, in order of arrival
        self._suspects = Suspects()
        self._stopped = False
        self._asked_s: float | None = None  # since when the worker owes a Pong
        self._worker: WorkerProcess | None = None
        self._load_error: str | None = None
        self._load_s = 1.0  # what the last load took
        self._pause_s = settings.restart_s
        self._first_ready: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """How many generations were accepted and have not ended."""
        return len(self._pending)

    @property
    def worker_pid(self) -> int | None:
        """The id of the current worker process, if there is one."""
        return None if self._worker is None else self._worker.pid

    async def start(self) -> None:
        """Start the worker and wait until its model is loaded.

        Raises:
            StartError: the model cannot be loaded, or the worker died while loading it.
        """
        self._begin()
        await self.loaded()

    async def loaded(self) -> None:
        """Wait until the model is loaded for the first time, or again after `rouse`.

        Raises:
            StartError: it cannot be; after `rouse` it is asleep again.
        """
        assert self._first_ready is not None, "nothing was started"
        await self._first_ready

    @property
    def available(self) -> bool:
        """Whether requests are taken: it is loaded, or will be for the next one."""
        return self.ready is not None or self.asleep

    async def sleep(self) -> None:
        """End the worker and keep the rest, until `rouse`. Nothing may be in progress."""
        assert not self._pending, "what was accepted needs its worker"
        task, worker, self._task, self._worker = self._task, self._worker, None, None
        self._fall_asleep()
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if worker is not None:
            await worker.stop()

    def rouse(self) -> None:
        """Begin to load the model again; `loaded` waits for it.

        Raises:
            UnavailableError: the server is shutting down.
        """
        assert self.asleep, "it has its worker"
        if self._stopped:
            raise UnavailableError(_SHUTTING_DOWN)
        self.asleep = False
        if self.state is ModelState.IDLE:
            self.state = ModelState.LOADING
        self._begin()

    def _begin(self) -> None:
        self._first_ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep_alive())

    def _fall_asleep(self) -> None:
        self.asleep, self.ready = True, None
        if self.state is not ModelState.DRAINING:
            self.state = ModelState.IDLE
        self._metrics.unloaded()

    async def stop(self) -> None:
        """End the worker and fail what still runs on it. Nothing is accepted afterwards."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.ready = None
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_exception(StartError(f"{self._ref} was stopped while it was loading"))
            self._first_ready.exception()  # whoever waits gets it; if nobody does, asyncio must not log it
        self.end_all(UnavailableError(_SHUTTING_DOWN))
        if self._worker is not None:
            await self._worker.stop()

    def accept(self, generations: Sequence[Generation], *, patient: bool = False) -> None:
        """Accept all of them, or none. `patient` ones wait for a worker that is about to be started again.

        Raises:
            UnavailableError: the model is not loaded right now, or never will be again.
            OverloadedError: the queue has no room.
        """
        if self._stopped or (not patient and (self.ready is None or self._worker is None)):
            raise UnavailableError(
                f"{self._ref} is {self.state.value}: try again in a moment, GET /health/ready says when it is ready",
                retry_after_s=self._pause_s + self._load_s,
            )
        if generations:
            first = generations[0]
            work = sum((each.work for each in generations), NOTHING)
            self.check_room(work, batch=first.batch, left_s=first.left_s(self._settings.total_s))
        if any(generation.mode != "shadow" for generation in generations):
            self.on_request()
        loop = asyncio.get_running_loop()
        for generation in generations:
            generation.id = next(self._ids)
            generation.owner = generations[0].id
            self._pending[generation.id] = generation
            self._admission.enter(generation.owner, generation.work, batch=generation.batch)
            left_s = generation.left_s(self._settings.total_s)
            generation.deadline = loop.call_later(left_s, self._expire, generation)
        if not self._suspects and self.ready is not None:
            self._run(generations)

    def check_room(self, work: Work, *, batch: bool, left_s: float) -> None:
        """Refuse work for which there is no room now; `left_s`: how long its caller still waits.

        Raises:
            InvalidInputError: there never will be.
            OverloadedError: try again later.
        """
        self._admission.check(work, batch=batch, within_s=max(0.0, min(self._settings.queue_s, left_s)))

    def limits_changed(self) -> None:
        """The settings were read again."""
        settings = self._settings
        self._admission.resize(max_queue=settings.max_queue, max_queue_tokens=settings.max_queue_tokens)

    def cancel(self, generation: Generation) -> None:
        """Stop a generation that nobody waits for any more; one that has already ended is left alone."""
        if generation.id in self._pending:
            self._forget(generation)
            self._fail(generation, ClientGoneError("the client closed its connection"))

    def end_all(self, error: ApiError) -> None:
        """Fail everything in progress."""
        for generation in list(self._pending.values()):
            self._fail(generation, error)

    def _submission(self, generation: Generation) -> Submit:
        return Submit(
            id=generation.id,
            source_ids=generation.source_ids,
            parameters=generation.parameters,
            stream=generation.told_by_token,
            arrived_s=generation.arrived_s,
            queued_s=time.monotonic(),
            queue_limit_s=self._settings.queue_s,
            reuses_source=generation.reuses_source,
            owner=generation.owner,
            batch=generation.batch,
        )

    def _run(self, generations: Sequence[Generation]) -> None:
        assert self._worker is not None
        for generation in generations:
            generation.begin()
        if generations:
            self._worker.send([self._submission(generation) for generation in generations])

    def _forget(self, generation: Generation) -> None:
        """Tell the worker to stop this generation, if a loaded worker is running."""
        if self._worker is not None and self.ready is not None:
            self._worker.send([Cancel(id=generation.id)])

    def _fail(self, generation: Generation, error: ApiError) -> None:
        if self._take_out(generation.id) is not None:
            if generation.mode != "shadow":
                self._metrics.ended(error.outcome)
            generation.fail(error)
            self._after(generation)

    def _take_out(self, number: int) -> Generation | None:
        generation = self._pending.pop(number, None)
        if generation is not None:
            self._admission.leave(generation.owner, generation.work, batch=generation.batch)
        return generation

    def _after(self, generation: Generation) -> None:
        """Go on with the suspects once those that ran have ended, and with all others after the last of them."""
        if self._suspects.ended(generation) and self.ready is not None:
            self._run_what_may()

    def _run_what_may(self) -> None:
        suspects = self._suspects.next(self._pending)
        self._run(suspects or [each for each in self._pending.values() if not each.sent])

    def _expire(self, generation: Generation) -> None:
        self._forget(generation)
        self._fail(
            generation,
            TimedOutError(
                f"the request took more than {min(self._settings.total_s, generation.timeout_s):g} s: "
                "ask for fewer tokens, or send less at once"
            ),
        )

    def _on_report(self, report: Report) -> None:
        match report:
            case Tokens():
                for token in report.reports:
                    if (generation := self._pending.get(token.id)) is not None:
                        self._take(generation, token)
            case Finished():
                if (generation := self._take_out(report.id)) is not None:
                    self._answer(generation, report)
                    self._after(generation)
            case Failed():
                if (generation := self._pending.get(report.id)) is not None:
                    self._fail(generation, _ERRORS.get(report.kind, GenerationError)(report.error))
            case Stats():
                self._metrics.observe(report)
            case Ready():
                self._become_ready(report)
            case Pong():
                self._asked_s = None
            case LoadFailed():
                self._load_error = report.error
                if report.damaged:
                    self._metrics.damaged()

    def _take(self, generation: Generation, token: TokenReport) -> None:
        if (stopped := generation.push(token)) is not None:
            self._forget(generation)
            self._take_out(token.id)
            self._answer(generation, stopped)
            self._after(generation)

    def _answer(self, generation: Generation, finished: Finished) -> None:
        self._pause_s = self._settings.restart_s  # the worker works
        timings = finished.timings
        self._admission.finished(generation.parameters.rows, (timings.total_ms - timings.queue_ms) / 1e3)
        if generation.mode != "shadow":
            self._metrics.answered(
                generation.mode,
                time.monotonic() - generation.arrived_s,
                timings,
                source=len(generation.source_ids),
                generated=len(finished.tokens),
                trace=generation.trace,
            )
        generation.finish(finished)

    def _become_ready(self, ready: Ready) -> None:
        self.ready = self.reported = ready
        self._load_s = ready.load_s
        if self.state is not ModelState.DRAINING:
            self.state = ModelState.READY
        self._metrics.loaded(ready)
        assert self._first_ready is not None
        if not self._first_ready.done():
            self._first_ready.set_result(None)
        self._run_what_may()

    async def _keep_alive(self) -> None:
        """Start workers, one after another, as long as the server runs."""
        assert self._first_ready is not None
        while True:
            self._load_error = None
            if self.state is not ModelState.DRAINING:
                self.state = ModelState.LOADING
            how = await self._live_once()
            self._worker = self.ready = None
            if self.state is not ModelState.DRAINING:
                self.state = ModelState.FAILED
            reason = self._load_error or f"its worker {how}; the lines above say more"
            if not self._first_ready.done():
                if self.reported is not None:
                    self._fall_asleep()
                self._first_ready.set_exception(StartError(f"{self._ref} cannot be loaded: {reason}"))
                return
            _logger.error("%s: its worker %s, the next one starts in %g s", self._ref, how, self._pause_s)
            self._metrics.restarted()
            self._judge(how)
            await asyncio.sleep(self._pause_s)
            if not self._suspects:  # deaths by suspects are expected, and do not mean that the model is broken
                self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)

    async def _live_once(self) -> str:
        """Run one worker from start to end; return how it ended."""
        try:
            self._worker = await WorkerProcess.spawn(self._worker_module, self._environment(), self._on_report)
        except OSError as error:  # out of descriptors, processes or memory: they may become free
            return f"could not be started ({error.strerror})"
        self._worker.send([self._load])
        self._asked_s = None
        watch = asyncio.create_task(self._watch(self._worker))
        try:
            return await self._worker.wait()
        finally:
            watch.cancel()

    async def _watch(self, worker: WorkerProcess) -> None:
        """End a worker that was loaded and does not answer. One that works answers between two steps."""
        limit_s = self._settings.watchdog_s
        while True:
            await asyncio.sleep(limit_s / 4)
            if self._asked_s is not None and time.monotonic() - self._asked_s > limit_s:
                _logger.error("%s: its worker has not answered for %g s and is ended", self._ref, limit_s)
                self._metrics.hung()
                worker.kill()
                return
            if self._asked_s is None and self.ready is not None:
                self._asked_s = time.monotonic()
                worker.send([Ping()])

    def _judge(self, how: str) -> None:
        """Fail what cannot run again, and what is known to have killed the worker; sort the rest."""
        had = [each for each in self._pending.values() if each.sent]
        for generation in had:
            if generation.delivered:
                self._fail(generation, GenerationError(f"the worker of {self._ref} {how}: send the request again"))
        again = [each for each in had if not each.delivered]
        culprit = self._suspects.after_a_death(again, all_of_it=len(again) == len(had))
        if culprit is not None:
            self._metrics.quarantined()
            error = f"the worker of {self._ref} {how} while it ran this request alone: change the request"
            self._fail(culprit, GenerationError(error))

    def _environment(self) -> dict[str, str]:
        """What a worker's environment must contain before it imports torch."""
        settings = self._settings
        environment = worker_environment(settings.log_format, settings.log_level, self._ref)
        environment["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded at serve time
        if self._load.config.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self._load.config.threads)
        return environment
