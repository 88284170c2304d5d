"""The answers of the last minute: how many, and how long they took. Prometheus keeps what was before."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

WINDOW_S = 60.0
MOST_KEPT = 4096  # so that a look at them stays cheap; at more than 68 a second they are of less than a minute


class RecentFigures(NamedTuple):
    """Seconds are None where there was no answer."""

    answers: int
    per_s: float
    p50_s: float | None
    p95_s: float | None


class RecentAnswers:
    """One variant's answers to callers, comparisons not among them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: deque[tuple[float, float]] = deque(maxlen=MOST_KEPT)  # when, and how long it took

    def note(self, duration_s: float) -> None:
        """Record one answer."""
        self._kept.append((self._clock(), duration_s))

    def figures(self) -> RecentFigures:
        """The figures of the last minute, or of the newest answers if that had more than are kept."""
        now = self._clock()
        while self._kept and self._kept[0][0] < now - WINDOW_S:
            self._kept.popleft()
        if not self._kept:
            return RecentFigures(0, 0.0, None, None)
        durations = sorted(duration_s for _, duration_s in self._kept)
        count = len(durations)
        span_s = WINDOW_S if count < MOST_KEPT else max(now - self._kept[0][0], 1e-3)
        p50_s, p95_s = (durations[math.ceil(count * share) - 1] for share in (0.5, 0.95))
        return RecentFigures(count, count / span_s, p50_s, p95_s)
