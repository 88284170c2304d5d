"""How much one key may ask for: requests a second, and requests at once."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from server.errors import RateLimitedError

_RECENT = 16  # requests that the mean duration is taken over, about


@dataclass(frozen=True, kw_only=True)
class KeyLimits:
    """What the key file says of a key. Without end where it says nothing."""

    rate: float = math.inf  # requests a second; each text of a list is one
    burst: float = math.inf  # how many may come at once after a pause
    concurrency: float = math.inf  # requests that may be open at once; a list is one

    @classmethod
    def parse(cls, words: list[str]) -> "KeyLimits":
        """Read `rate=10`, `burst=20`, `concurrency=4`, in any order; the default burst is one second's requests.

        Raises:
            ValueError: a value is not a number above 0, one is given twice, or there is a burst without a rate.
        """
        values: dict[str, float] = {}
        for word in words:
            name, _, text = word.partition("=")
            try:
                value = float(text)
            except ValueError:
                value = 0.0
            whole = name == "rate" or (value.is_integer() and value >= 1)
            if not (0 < value < math.inf and whole):
                kind = "a number above 0" if name == "rate" else "a whole number from 1"
                raise ValueError(f"{name} is {text!r}: give {kind}")
            if name in values:
                raise ValueError(f"{name} is given twice")
            values[name] = value
        if "rate" in values:
            values.setdefault("burst", max(1.0, values["rate"]))
        elif "burst" in values:
            raise ValueError("there is a burst without a rate: give both")
        return cls(**values)


LIMIT_NAMES = frozenset(KeyLimits.__dataclass_fields__)


class KeyUse:
    """What one key has asked for lately. It outlives a change of the key's limits."""

    def __init__(self) -> None:
        self._credit = math.inf  # requests that may come now; below 0 after a long list
        self._counted_s = 0.0  # when that was
        self._open = 0
        self._mean_s = 0.0  # how long a request takes

    @contextmanager
    def open_request(self, limits: KeyLimits) -> Iterator["KeyUse"]:
        """Hold a request open.

        Raises:
            RateLimitedError: it comes too soon, or too many are open.
        """
        now_s = time.monotonic()
        if math.isinf(limits.rate):
            self._credit = math.inf
        else:
            self._credit = min(limits.burst, self._credit + (now_s - self._counted_s) * limits.rate)
        self._counted_s = now_s
        if self._credit < 1:
            after_s = (1 - self._credit) / limits.rate
            raise RateLimitedError(
                f"the key may send {limits.rate:g} requests a second, {limits.burst:g} at once, and a list is as many "
                f"as its texts: try again in {after_s:.3g} s",
                retry_after_s=after_s,
            )
        if self._open >= limits.concurrency:
            raise RateLimitedError(
                f"{self._open} requests of the key are open, as many as may be at once: wait for one of them",
                retry_after_s=self._mean_s / limits.concurrency,
            )
        self._credit -= 1
        self._open += 1
        try:
            yield self
        finally:
            self._open -= 1
            self._mean_s += (time.monotonic() - now_s - self._mean_s) / (_RECENT if self._mean_s else 1)

    def charge(self, requests: int) -> None:
        """Count more: an open request has turned out to be several."""
        self._credit -= requests
