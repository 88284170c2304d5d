"""Locust as a child process."""

import os
import signal
import subprocess
import sys
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Self

from loadtest.loaded_models import Target
from loadtest.plan import Plan

STOP_S = 30  # how long requests in progress may take when the run is over
# The load continues briefly after the measured time, so that the last measured requests meet the same load as the
# others. Also, Locust's clock starts before the first request.
RUN_ON_S = 2
_END_S = 20  # for Locust to write its own statistics and exit
_PACKAGE = Path(__file__).parents[1]


class LocustProcess:
    """One headless run. It ends by itself, by `stop`, or when this process dies, which closes its standard input."""

    def __init__(self, plan: Plan, targets: list[Target], *, rows: Path, log: Path) -> None:
        run_s = ceil(plan.warmup_s + plan.duration_s) + RUN_ON_S
        self._longest_s = run_s + STOP_S + _END_S
        users = plan.users or 1
        self._command = [
            *(sys.executable, "-m", "locust", "-f", str(_PACKAGE / "locustfile.py"), "--headless", "--only-summary"),
            *("--host", plan.host, "--users", str(users), "--spawn-rate", str(users)),
            *("--run-time", f"{run_s}s", "--stop-timeout", str(STOP_S), "--loglevel", "WARNING"),
            *("--exit-code-on-error", "0"),  # our own report judges failed requests
            *("--models", " ".join(map(str, targets)), "--workload", str(plan.workload.resolve())),
            *("--seed", str(plan.seed), "--rows", str(rows), "--stop-with-stdin"),
        ]
        if plan.max_new_tokens is not None:
            self._command += ["--max-new-tokens", str(plan.max_new_tokens)]
        if plan.rate_per_s is not None:
            self._command += ["--rate", repr(plan.rate_per_s)]
        self._command.append("ArrivalUser" if plan.open_loop else "ClosedUser")
        self._log = log

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                # Ctrl-C must reach only the parent, which then stops this process itself. No separate session: Linux
                # divides the processor by session first, so a client in another session than the server wakes late.
                process_group=0,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.kill()

    @property
    def longest_s(self) -> float:
        """The longest that the run can take; after that, something has gone wrong."""
        return self._longest_s

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to send no more requests and to wait at most STOP_S seconds for those in progress."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within `timeout_s`."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def trouble(self) -> str | None:
        """Why it failed; None if it did not."""
        code = self._process.returncode
        if code == 0:
            return None
        if code < 0:
            return f"Locust was ended by {signal.Signals(-code).name}: see {self._log}"
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        ours = [line for line in lines if line.startswith("error: ")]  # Locust prints a table of errors after them
        reasons = ours or [line for line in lines if "error" in line.lower()] or ["no reason given"]
        return f"Locust ended with exit code {code} ({reasons[-1].strip()}): see {self._log}"


def _environment() -> dict[str, str]:
    """This process's environment, without variables that would silently override the command line."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", "NASH_LOADTEST_"))}
    search = [str(_PACKAGE.parent), kept.get("PYTHONPATH")]
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, search))
    # gevent's default, epoll, waits in whole milliseconds; select waits with microsecond precision.
    kept["GEVENT_BACKEND"] = "select"
    return kept
