"""Locust's side of the load test.

    locust -f loadtest/locustfile.py --class-picker --host http://127.0.0.1:8000 --workload examples/g2p/workload.jsonl

opens Locust's web page, with the options below as fields; `python -m loadtest` runs the same file without the page and
turns the rows into a report. The file needs only Locust and this package. Set GEVENT_BACKEND=select: gevent's default
waits in whole milliseconds, which makes an open loop half a millisecond late; with select it is a seventh of that.
"""

import gc
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gevent  # type: ignore[import-untyped]
from gevent.event import Event  # type: ignore[import-untyped]
from gevent.pool import Group  # type: ignore[import-untyped]
from gevent.socket import wait_read  # type: ignore[import-untyped]
from locust import User, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser

from loadtest.client.generate_client import GenerateClient, Reply
from loadtest.client.rows import OK, TOO_MANY_IN_FLIGHT, RequestRow, RowWriter
from loadtest.client.schedule import RequestOrder, poisson_arrivals
from loadtest.client.scheduling import ask_for_short_slices
from loadtest.client.workload import read_workload
from loadtest.errors import LoadtestError, UsageError
from loadtest.loaded_models import ServerClient, Target, api_key, authorization, checked_host, choose_targets
from loadtest.plan import MOST_PER_S

MAX_IN_FLIGHT = 4096  # requests beyond this are recorded as failed
_FLUSH_S = 0.5


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_options(parser: LocustArgumentParser) -> None:
    prefix = "NASH_LOADTEST_"
    parser.add_argument(
        "--models",
        env_var=prefix + "MODELS",
        default="",
        help="Variants as REF[,weight=N], separated by spaces; default: all of the first model's family.",
    )
    parser.add_argument(
        "--workload", env_var=prefix + "WORKLOAD", default="", help='JSONL file of {"source": text} rows.'
    )
    parser.add_argument(
        "--rate", env_var=prefix + "RATE", type=float, default=10.0, help="ArrivalUser: requests a second."
    )
    parser.add_argument(
        "--max-new-tokens", env_var=prefix + "MAX_NEW_TOKENS", type=int, default=0, help="0: the model's own limit."
    )
    parser.add_argument(
        "--seed", env_var=prefix + "SEED", type=int, default=0, help="Seed of arrivals, variants and texts."
    )
    parser.add_argument("--rows", default="", include_in_web_ui=False, help="CSV file that gets one row per request.")
    parser.add_argument(
        "--stop-with-stdin",
        action="store_true",
        include_in_web_ui=False,
        help="End the run when standard input closes, so that no run outlives the process that started it.",
    )


class LoadState:
    """One run: what is sent next, to which variant, and where its row goes."""

    def __init__(self, environment: Environment) -> None:
        """Read the current options, which the web page may have changed.

        Raises:
            LoadtestError: the options are wrong, or the server cannot be used.
        """
        options: Any = environment.parsed_options
        host = checked_host(environment.host or "")
        if not options.workload:
            raise UsageError("no workload: give --workload FILE")
        if not 0 < options.rate <= MOST_PER_S:
            raise UsageError(
                f"rate {options.rate} is out of range: give requests a second above 0, up to {MOST_PER_S:.0f}"
            )
        self._workload = read_workload(Path(options.workload))
        key = api_key()
        self._targets = choose_targets(options.models.split(), ServerClient(host, key).models())
        self._order = RequestOrder(self._workload, [target.weight for target in self._targets], options.seed)
        self._client = GenerateClient(
            host,
            authorization(key),
            concurrency=MAX_IN_FLIGHT,
            max_new_tokens=options.max_new_tokens or None,
        )
        self._rows = RowWriter(Path(options.rows)) if options.rows else None
        self._request_event = environment.events.request
        self._started = time.perf_counter()
        self._flusher = gevent.spawn(self._flush)

    def arrivals(self, rate_per_s: float, seed: int) -> Iterator[float]:
        """When requests are due, on the clock of time.perf_counter."""
        return (self._started + at_s for at_s in poisson_arrivals(rate_per_s, seed))

    def next_request(self) -> tuple[Target, int]:
        """The next variant and the index of its text."""
        variant, text = next(self._order)
        return self._targets[variant], text

    def send(self, target: Target, text: int, intended: float | None = None) -> None:
        """Send one request and record how it went; `intended` is when it was due, and defaults to now."""
        self._record(target, text, intended, self._client.generate(target.ref, self._workload.sources[text]))

    def refuse(self, target: Target, text: int, intended: float) -> None:
        """Record one request as failed without sending it, because too many are in progress."""
        now = time.perf_counter()
        self._record(target, text, intended, Reply(sent=now, ended=now, outcome=TOO_MANY_IN_FLIGHT))

    def close(self) -> None:
        """Write the last rows.

        Raises:
            LoadtestError: some rows could not be written.
        """
        self._flusher.kill()
        self._client.close()
        if self._rows:
            self._rows.close()
            if self._rows.lost:
                reason = self._rows.error.strerror if self._rows.error else "unknown"
                raise LoadtestError(f"{self._rows.lost} requests could not be recorded ({reason})")

    def _record(self, target: Target, text: int, intended: float | None, answer: Reply) -> None:
        due = answer.sent if intended is None else intended
        latency_ms = (answer.ended - due) * 1e3
        if self._rows:
            self._rows.write(
                RequestRow(
                    intended_s=due - self._started,
                    lag_ms=(answer.sent - due) * 1e3,
                    latency_ms=latency_ms,
                    service_ms=(answer.ended - answer.sent) * 1e3,
                    variant=target.name,
                    ref=target.ref,
                    status=answer.status,
                    outcome=answer.outcome,
                    input=text,
                    queue_ms=answer.queue_ms,
                    encode_ms=answer.encode_ms,
                    decode_ms=answer.decode_ms,
                    total_ms=answer.total_ms,
                    generated_tokens=answer.generated_tokens,
                )
            )
        self._request_event.fire(  # type: ignore[no-untyped-call]
            request_type="POST",
            name=target.name,
            response_time=latency_ms,
            response_length=answer.size_bytes,
            exception=None if answer.outcome == OK else LoadtestError(answer.outcome),
            context={},
        )

    def _flush(self) -> None:
        while True:
            gevent.sleep(_FLUSH_S)
            if self._rows:
                self._rows.flush()


class _LoadUser(User):
    """Locust creates the users itself, so they find their run in this class."""

    abstract = True
    load: ClassVar[LoadState | None] = None

    def current_load(self) -> LoadState:
        """The current run.

        Raises:
            StopUser: it could not be set up; the log says why.
        """
        if self.load is None:
            raise StopUser
        return self.load


class ClosedUser(_LoadUser):
    """Closed loop: sends the next request as soon as the last one is answered."""

    @task
    def generate(self) -> None:
        """Send one request."""
        load = self.current_load()
        load.send(*load.next_request())


class ArrivalUser(_LoadUser):
    """Open loop: requests arrive at the given rate, whether or not the server keeps up; one user sends them all."""

    fixed_count = 1

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._stopping = Event()

    @task
    def arrive(self) -> None:
        """The whole run: send each due request from its own greenlet, then wait for those still in progress."""
        load = self.current_load()
        options: Any = self.environment.parsed_options
        under_way = Group()
        try:
            for due in load.arrivals(options.rate, options.seed):
                if self._wait_until(due):
                    break
                target, text = load.next_request()
                if len(under_way) < MAX_IN_FLIGHT:
                    under_way.add(gevent.spawn(load.send, target, text, due))
                else:
                    load.refuse(target, text, due)
            under_way.join()
        finally:
            under_way.kill()  # each one records that it did not finish
        raise StopUser

    def stop(self, force: bool = False) -> bool:
        """Send no more requests, then do what Locust does."""
        self._stopping.set()
        return bool(super().stop(force))

    def _wait_until(self, due: float) -> bool:
        """Wait until `due`. Returns whether the run should stop instead."""
        wait_s = due - time.perf_counter()
        if wait_s > 0:
            return bool(self._stopping.wait(wait_s))
        gevent.sleep(0)  # while behind schedule, let the spawned senders, and whatever stops the run, have their turn
        return bool(self._stopping.is_set())


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _open_load(environment: Environment, **_: object) -> None:
    _LoadUser.load = None
    try:
        _LoadUser.load = LoadState(environment)
    except (LoadtestError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        environment.process_exit_code = 2 if isinstance(error, UsageError) else 1
        if environment.web_ui is None and environment.runner is not None:
            gevent.spawn(environment.runner.quit)
        return
    ask_for_short_slices()
    gc.collect()
    gc.freeze()  # otherwise every full collection would scan all of Locust while requests wait


@events.test_stop.add_listener  # type: ignore[untyped-decorator]
def _close_load(environment: Environment, **_: object) -> None:
    load, _LoadUser.load = _LoadUser.load, None
    if load is not None:
        try:
            load.close()
        except LoadtestError as error:
            print(f"error: {error}", file=sys.stderr)
            environment.process_exit_code = 1


@events.init.add_listener  # type: ignore[untyped-decorator]
def _watch_stdin(environment: Environment, **_: object) -> None:
    options: Any = environment.parsed_options
    if options is not None and options.stop_with_stdin:
        gevent.spawn(_quit_at_end_of_stdin, environment)


def _quit_at_end_of_stdin(environment: Environment) -> None:
    descriptor = sys.stdin.fileno()
    while True:
        wait_read(descriptor)
        if not os.read(descriptor, 1024):
            break
    if environment.runner is not None:
        environment.runner.quit()
