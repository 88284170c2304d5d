"""A worker process: one engine fed through the socket it was started with.

Only the supervisor starts it, as `python -m server.worker FD PARENT_PID`. The API process decides when a worker ends:
the worker ignores SIGINT and SIGTERM, exits when its socket is closed, and is killed by the kernel when its parent
ends.
"""

import ctypes
import logging
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Collection
from pathlib import Path
from typing import NoReturn, Protocol

from model_store.errors import CorruptStoreError, ModelStoreError
from model_store.model.model import Model
from model_store.operations.sealed import sealed
from model_store.version.manifest import FileEntry
from server.engine.errors import BadRequestError, EngineError, LoadError
from server.engine.interface.config import EngineLimits
from server.engine.interface.generation_config import GenerationDefaults
from server.engine.interface.parameters import GenerationParameters
from server.engine.sequence import Sequence, Status, TokenEvent
from server.messages import (
    Cancel,
    Command,
    Failed,
    Finished,
    FrameBuffer,
    Load,
    LoadFailed,
    Ping,
    Pong,
    ProtocolError,
    Ready,
    Report,
    Submit,
    TokenReport,
    Tokens,
    decode_command,
    encode,
    id_of_malformed,
)
from server.telemetry.logs import configure_worker
from server.worker.stats import StatsCollector, Step

_READ_BYTES = 1 << 18
_PR_SET_PDEATHSIG = 1

_logger = logging.getLogger("server.worker")


class WorkerEngine(Protocol):
    """What a worker needs from an engine."""

    limits: EngineLimits
    defaults: GenerationDefaults

    @property
    def idle(self) -> bool: ...
    @property
    def step_stats(self) -> Step: ...
    def add(self, sequence: Sequence) -> None: ...
    def cancel(self, sequence_id: int) -> bool: ...
    def step(self) -> list[TokenEvent]: ...
    def memory_bytes(self) -> dict[str, int]: ...


class EndOfInput(Exception):  # noqa: N818 (not an error: the ordinary end of a worker)
    """The API process has closed the socket, or is gone."""


class Link:
    """The worker's end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames = FrameBuffer()

    def receive(self, wait_s: float | None) -> list[bytes]:
        """The payloads received, after waiting at most `wait_s` (None: forever) for the first byte.

        Raises:
            EndOfInput: the other end is closed.
            ProtocolError: the bytes are not frames.
        """
        self._connection.settimeout(wait_s)
        try:
            data = self._connection.recv(_READ_BYTES)
        except (TimeoutError, BlockingIOError):
            return []
        except ConnectionError as error:
            raise EndOfInput from error
        if not data:
            raise EndOfInput
        return list(self._frames.feed(data))

    def send(self, reports: Collection[Report]) -> None:
        """Write reports, all at once.

        Raises:
            EndOfInput: the other end is closed.
        """
        self._connection.settimeout(None)
        try:
            self._connection.sendall(encode(reports))
        except ConnectionError as error:
            raise EndOfInput from error


class Worker:
    """Feeds the engine between its steps and reports their results."""

    def __init__(self, engine: WorkerEngine, link: Link, stats: StatsCollector) -> None:
        self._engine = engine
        self._link = link
        self._stats = stats
        self._jobs: dict[int, tuple[Submit, Sequence]] = {}  # by id: all that wait or run
        self._queue: deque[int] = deque()  # ids in order of submission; running and ended ones are removed at its head

    def run(self) -> None:
        """Work until the socket is closed.

        Raises:
            EndOfInput: always, in the end.
        """
        while True:
            idle = self._engine.idle
            reports: list[Report] = []
            for payload in self._link.receive(self._stats.due_in_s() if idle else 0.0):
                self._handle(payload, reports)
            if not self._engine.idle:
                self._expire(reports)
                self._step(reports)
            if self._stats.due_in_s() == 0.0:
                reports.append(self._stats.take([sequence for _, sequence in self._jobs.values()]))
            if reports:
                self._link.send(reports)

    def _handle(self, payload: bytes, reports: list[Report]) -> None:
        try:
            command: Command = decode_command(payload)
        except ProtocolError as error:
            _logger.error("%s", error)
            if (request_id := id_of_malformed(payload)) is not None:
                reports.append(Failed(id=request_id, kind="validation", error=str(error)))
            return
        match command:
            case Submit():
                self._submit(command, reports)
            case Cancel():
                if self._engine.cancel(command.id):
                    self._drop(command.id)
                    self._stats.changed()
            case Ping():
                reports.append(Pong())
            case Load():
                _logger.error("a second model was sent: one worker holds one")

    def _submit(self, submit: Submit, reports: list[Report]) -> None:
        sequence = Sequence(
            id=submit.id,
            source_ids=submit.source_ids,
            parameters=submit.parameters,
            arrived_s=submit.arrived_s,
            reuses_source=submit.reuses_source,
            owner=submit.owner,
            batch=submit.batch,
        )
        try:
            self._engine.add(sequence)
        except BadRequestError as error:
            reports.append(Failed(id=submit.id, kind="validation", error=str(error)))
            return
        self._jobs[submit.id] = (submit, sequence)
        self._queue.append(submit.id)

    def _drop(self, sequence_id: int) -> Sequence:
        return self._jobs.pop(sequence_id)[1]

    def _expire(self, reports: list[Report]) -> None:
        """Fail whatever has waited too long for a slot. The queue is in order of submission: its head is oldest."""
        while self._queue:
            job = self._jobs.get(self._queue[0])
            if job is not None and job[1].status is Status.WAITING:
                submit, sequence = job
                limit_s = submit.queue_limit_s
                if time.monotonic() - submit.queued_s < limit_s:
                    return
                self._engine.cancel(sequence.id)
                self._drop(sequence.id)
                error = f"waited {limit_s:g} s and no slot came free: try again later, or send less at once"
                reports.append(Failed(id=sequence.id, kind="timeout", error=error))
            self._queue.popleft()

    def _step(self, reports: list[Report]) -> None:
        events = self._engine.step()
        self._stats.note(self._engine.step_stats)
        tokens: list[TokenReport] = []
        for event in events:
            if event.error is not None:
                self._drop(event.sequence_id)
                reports.append(Failed(id=event.sequence_id, kind="generation", error=event.error))
            elif event.finish_reason is not None:
                sequence = self._drop(event.sequence_id)
                reports.append(
                    Finished(
                        id=sequence.id,
                        hypotheses=sequence.hypotheses,
                        timings=sequence.timings,
                    )
                )
            else:
                submit, sequence = self._jobs[event.sequence_id]
                if submit.stream:
                    assert event.token is not None
                    tokens.append(_token_report(event, event.token, sequence))
        if tokens:
            reports.append(Tokens(reports=tokens))


def _token_report(event: TokenEvent, token: int, sequence: Sequence) -> TokenReport:
    assert sequence.admitted_s is not None, f"sequence {sequence.id} is {sequence.status}"
    assert sequence.encoded_s is not None, f"sequence {sequence.id} is {sequence.status}"
    return TokenReport(
        id=event.sequence_id,
        token=token,
        logprob=event.logprob,
        top_tokens=event.top_tokens,
        at_ms=1e3 * (event.made_s - sequence.arrived_s),
        queue_ms=1e3 * (sequence.admitted_s - sequence.arrived_s),
        encode_ms=1e3 * (sequence.encoded_s - sequence.admitted_s),
    )


def _load_engine(load: Load) -> WorkerEngine:
    """Load the model, of a version in the store exactly the bytes that were published, each time a worker starts."""
    from server.engine.engine import Engine  # late, because it imports torch, which the loop above does not need

    folder = Path(load.directory)
    if not load.files:
        engine = Engine.load(Model.open(folder), load.config, _logger.info)
    else:
        entries = [FileEntry(path=path, sha256=sha256, size=size) for path, sha256, size in load.files]
        with sealed(folder, entries) as verified:
            try:
                engine = Engine.load(Model.open(verified), load.config, _logger.info)
            except (EngineError, ModelStoreError) as error:
                raise LoadError(str(error).replace(str(verified), str(folder))) from error
    # The first step pays one-time costs; no caller should wait for them.
    (first,) = engine.generate([[engine.spec.eos_id]], GenerationParameters(max_new_tokens=1))
    if first.error is not None:
        raise LoadError(f"{load.directory}: {first.error}")
    return engine


def _load_and_run(link: Link, load_engine: Callable[[Load], WorkerEngine], started_s: float) -> int:
    payloads: list[bytes] = []
    while not payloads:
        payloads = link.receive(None)
    load = decode_command(payloads[0])
    assert isinstance(load, Load), "the supervisor sends the model first, and nothing more before it is loaded"
    try:
        engine = load_engine(load)
    except (EngineError, ModelStoreError, OSError, MemoryError) as error:
        damaged = isinstance(error, CorruptStoreError)
        link.send([LoadFailed(error=str(error) or type(error).__name__, damaged=damaged)])
        return 1
    link.send(
        [
            Ready(
                limits=engine.limits,
                defaults=engine.defaults,
                memory_bytes=engine.memory_bytes(),
                load_s=time.monotonic() - started_s,
            )
        ]
    )
    Worker(engine, link, StatsCollector(engine.limits)).run()
    return 0


def _die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # the parent ended before the call above
        sys.exit(0)


def main(load_engine: Callable[[Load], WorkerEngine] = _load_engine) -> NoReturn:
    """Run the worker, then exit the process; with 0 if the API process ended it."""
    started_s = time.monotonic()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    configure_worker()
    descriptor, parent_pid = (int(argument) for argument in sys.argv[1:])
    _die_with_parent(parent_pid)
    try:
        code = _load_and_run(Link(socket.socket(fileno=descriptor)), load_engine, started_s)
    except EndOfInput:
        code = 0
    except ProtocolError as error:
        _logger.error("%s: giving up", error)
        code = 1
    except Exception:
        _logger.exception("the engine failed, and its state can no longer be trusted")
        code = 1
    os._exit(code)  # skip torch's slow teardown: there is nothing to save, and stderr is unbuffered
