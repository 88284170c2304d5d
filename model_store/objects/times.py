"""Points in time as a store writes them: ISO text in UTC, to the second."""

import time
from datetime import UTC, datetime


def utc_text(seconds_since_epoch: float) -> str:
    """A point in time as text."""
    return datetime.fromtimestamp(int(seconds_since_epoch), UTC).isoformat().replace("+00:00", "Z")


def now_text() -> str:
    """The present as text."""
    return utc_text(time.time())
