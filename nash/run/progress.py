"""Progress of long work on standard error: one live line per stage, or plain lines if it is not a terminal."""

import time
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# The promise is a line at least every ten seconds; the margin is for a machine whose cores are all busy.
PLAIN_LINE_EVERY_S = 8.0

# The work of a stage calls this with the amount done and the total.
Watch = Callable[[int, int], None]


class Stage:
    """One stage of a command's work, shown while the `with` block runs.

    In a terminal it is a live bar. Elsewhere it prints a line at its start, one every `every_s` seconds, however long a
    single unit of work takes, and, if the amount of work is known, one at its end. With `steady` the bar is drawn only
    on updates, so that no other thread disturbs a measurement.
    """

    def __init__(
        self,
        title: str,
        console: Console,
        total: int | None = None,
        *,
        done: int = 0,
        unit: str = "",
        steady: bool = False,
        every_s: float = PLAIN_LINE_EVERY_S,
    ) -> None:
        """`total` is the amount of work in `unit`s, None if unknown; `done` of it was done before."""
        self.title = title
        self.console = console
        self.total = total
        self.done = done
        self.unit = unit
        self.note = ""
        self._first = done  # earlier work says nothing about the speed
        self._started_s = time.monotonic()
        self._every_s = every_s
        self._ended = Event()
        self._ticker: Thread | None = None
        self._steady = steady
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=30),
                *([] if self.total is None else [MofNCompleteColumn()]),
                TimeElapsedColumn(),
                *([] if self.total is None else [TextColumn("left"), TimeRemainingColumn()]),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                auto_refresh=not self._steady,
                transient=self.total is None,
            )
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, note="")
            self._bar.start()
        else:
            self._print()
            self._ticker = Thread(target=self._tick, name="progress", daemon=True)
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing, also after an error: otherwise the terminal would stay without its cursor."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()
            self._bar = None
        if self._ticker is not None:
            self._ended.set()
            self._ticker.join()
            self._ticker = None
            if kind is None and self.total is not None:
                self._print()

    def update(self, done: int, total: int | None = None, note: str | None = None) -> None:
        """Set the total done so far and, if they have changed, the amount of work and the note shown after it."""
        self.done = done
        self.total = self.total if total is None else total
        self.note = self.note if note is None else note
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.total, note=self.note, refresh=self._steady)

    def line(self) -> str:
        """The work done and the time left, in one line."""
        elapsed_s = time.monotonic() - self._started_s
        if self.total is None:
            return self.title if elapsed_s < 1 else f"{self.title}: {duration(elapsed_s)} so far"
        parts = [f"{self.title}: {self.done}/{self.total}" + (f" {self.unit}" if self.unit else "")]
        if self.done >= self.total:
            parts.append(f"took {duration(elapsed_s)}")
        elif self.done > self._first:
            left_s = elapsed_s / (self.done - self._first) * (self.total - self.done)
            parts.append(f"about {duration(left_s)} left")
        return ", ".join(parts) + (f" ({self.note})" if self.note else "")

    def _tick(self) -> None:
        while not self._ended.wait(self._every_s):
            self._print()

    def _print(self) -> None:
        self.console.print(self.line(), soft_wrap=True)


def duration(seconds: float) -> str:
    """A readable time span: in seconds below two minutes, then minutes, then hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
