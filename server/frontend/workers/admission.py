"""How many generations of one variant may wait, and when refused ones should retry."""

import math
import time
from collections import deque

from server.errors import OverloadedError

_RATE_SAMPLES = 64


class Admission:
    """Bounds one variant's queue, and tracks the rate at which its generations finish."""

    def __init__(self, *, slots: int, max_queue: int) -> None:
        self._slots = slots
        self._max_queue = max_queue
        self._finished_s: deque[float] = deque(maxlen=_RATE_SAMPLES)

    def finished(self) -> None:
        """Record that a generation has finished."""
        self._finished_s.append(time.monotonic())

    def resize(self, max_queue: int) -> None:
        """Let another number wait. Those that wait already stay."""
        self._max_queue = max_queue

    def check(self, pending: int, wanted: int) -> None:
        """Refuse `wanted` more generations if the `pending` ones, running and waiting, leave no room.

        Raises:
            OverloadedError: the queue has no room; `retry_after_s` is when those waiting now will have left the
                queue, at the recent rate.
        """
        if pending + wanted <= self._slots + self._max_queue:
            return
        waiting = max(0, pending - self._slots)
        rest_s = self._seconds_for(max(1, waiting))
        raise OverloadedError(
            f"the queue is full: {waiting} of at most {self._max_queue} are waiting, {wanted} more came; "
            f"try again in {rest_s} s, or send less at once",
            retry_after_s=rest_s,
        )

    def _seconds_for(self, generations: int) -> int:
        """Whole seconds, at least one, until that many generations have finished."""
        if len(self._finished_s) < 2:
            return 1
        span_s = self._finished_s[-1] - self._finished_s[0]
        return max(1, math.ceil(generations * span_s / (len(self._finished_s) - 1)))
