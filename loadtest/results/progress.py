"""The progress display of a run, read from the rows as they are written."""

import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from loadtest.client.rows import OK, read_rows
from loadtest.plan import Plan

_RECENT = 500  # how many recent answers the median covers
_LINE_S = 10  # between lines without a terminal


class Progress:
    """Follows the rows file. On a terminal it redraws one line; elsewhere it prints a line at intervals."""

    def __init__(self, plan: Plan, rows: Path, console: Console) -> None:
        self._plan, self._path, self._console = plan, rows, console
        self._offset = 0  # bytes read
        self._headed = False  # whether the file's first line was read
        self._sent = self._failed = 0
        self._at_s = 0.0
        self._recent: dict[str, list[float]] = defaultdict(list)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._next_line = time.monotonic() + _LINE_S

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self) -> None:
        """Read new rows and show the progress."""
        self._read()
        if self._live:
            self._live.update(Text(self._line()), refresh=True)
        elif time.monotonic() >= self._next_line:
            self._next_line += _LINE_S
            self._console.print(self._line())

    def _read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.decode("utf-8", errors="replace").splitlines(keepends=True)
        if self._headed:
            lines.insert(0, "\n")  # in place of the header line, which read_rows skips
        self._headed = self._headed or bool(lines)
        for row in filter(None, read_rows(lines)):
            self._sent += 1
            self._at_s = max(self._at_s, row.intended_s)
            if row.outcome == OK:
                recent = self._recent[row.variant]
                recent.append(row.latency_ms)
                del recent[:-_RECENT]
            else:
                self._failed += 1

    def _line(self) -> str:
        plan = self._plan
        left_s = max(0.0, plan.warmup_s + plan.duration_s - self._at_s)
        phase = "warm-up" if self._at_s < plan.warmup_s else f"{left_s:.0f} s left"
        rate = self._sent / self._at_s if self._at_s else 0.0
        failed = f", {self._failed} failed" if self._failed else ""
        medians = "".join(f", {name} p50 {median(recent):.1f} ms" for name, recent in self._recent.items())
        return f"{phase}: {self._sent} requests, {rate:.1f} a second{failed}{medians}"
