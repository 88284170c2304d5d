"""The plan of a run: what it is asked to do."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from loadtest.errors import UsageError

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(s|m|h)?")  # \d would also match the digits of other scripts
_UNIT_S = {None: 1, "s": 1, "m": 60, "h": 3600}
_LONGEST_S = 7 * 24 * 3600
_MOST_USERS = 4096
MOST_PER_S = 1e5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Either `users` (closed loop) or `rate_per_s` (open loop) is set."""

    host: str
    models: tuple[str, ...]  # as REF[,weight=N]; none: all of the first model's family
    workload: Path
    users: int | None
    rate_per_s: float | None
    duration_s: float  # measured, after the warm-up
    warmup_s: float
    max_new_tokens: int | None
    seed: int
    out: Path | None  # None: a new folder under runs/

    def __post_init__(self) -> None:
        """Check what the types do not.

        Raises:
            UsageError: a value is out of range.
        """
        if (self.users is None) == (self.rate_per_s is None):
            raise UsageError("--users and --rate cannot be combined: a closed loop has users, an open loop has a rate")
        if self.users is not None and not 1 <= self.users <= _MOST_USERS:
            raise UsageError(f"--users {self.users} is out of range: give 1 to {_MOST_USERS}")
        rate = self.rate_per_s
        if rate is not None and not 0 < rate <= MOST_PER_S:
            raise UsageError(f"--rate {rate:g} is out of range: give requests a second above 0, up to {MOST_PER_S:.0f}")
        if self.duration_s < 1:
            raise UsageError(f"--duration {self.duration_s:g} is too short: give a second or more")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UsageError(f"--max-new-tokens {self.max_new_tokens} is out of range: give 1 or more")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} is out of range: give 0 or more")

    @property
    def open_loop(self) -> bool:
        """Whether requests arrive at a fixed mean rate."""
        return self.rate_per_s is not None

    @property
    def loop(self) -> str:
        """The load in words."""
        if self.rate_per_s is not None:
            return f"{self.rate_per_s:g} requests a second"
        return "1 user" if self.users == 1 else f"{self.users} users"


def parse_duration_s(option: str, text: str) -> float:
    """Seconds from `90`, `90s`, `2m` or `1h`.

    Raises:
        UsageError: it is none of these, or longer than a week.
    """
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * _UNIT_S[match[2]] if match else math.inf
    if seconds > _LONGEST_S:
        raise UsageError(f"{option} {text!r} is not a duration up to a week: write 90, 90s, 2m or 1h")
    return seconds
