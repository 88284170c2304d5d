"""Points in time as a store writes them: ISO text in UTC, to the second."""

import time


def utc_text(seconds_since_epoch: float) -> str:
    """A point in time as text."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds_since_epoch))


def now_text() -> str:
    """The present as text."""
    return utc_text(time.time())
