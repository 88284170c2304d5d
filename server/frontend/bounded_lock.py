"""A lock for work that must run alone, with bounds on how many wait for it and for how long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.errors import OverloadedError, TimedOutError


class BoundedLock:
    """First come, first served."""

    def __init__(self, *, max_waiting: int, wait_s: float) -> None:
        self._lock = asyncio.Lock()
        self._waiting = 0
        self.limit(max_waiting=max_waiting, wait_s=wait_s)

    def limit(self, *, max_waiting: int, wait_s: float) -> None:
        """Change the bounds for those who come from now on."""
        self._max_waiting = max_waiting
        self._wait_s = wait_s

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold the lock.

        Raises:
            OverloadedError: too many are already waiting.
            TimedOutError: the lock did not become free in time.
        """
        if self._lock.locked() and self._waiting >= self._max_waiting:
            raise OverloadedError(f"{self._waiting} comparisons are already waiting: try again later", retry_after_s=1)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._lock.acquire()
        except TimeoutError:
            raise TimedOutError(f"waited {self._wait_s:g} s for other comparisons: try again later") from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._lock.release()
