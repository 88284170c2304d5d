"""Times a generation from outside by the wall clock, in the same way for all peers."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Made = TypeVar("Made")


@dataclass(frozen=True)
class Timing:
    """One generation of a whole batch, in milliseconds."""

    first_ms: float  # a generation that stops after one token: the encoder and a step
    step_ms: float  # the cost of each further token for the whole batch
    total_ms: float


def timed(generate: Callable[[int], Made], new_tokens: int) -> tuple[Timing, Made]:
    """Generate one token, then `new_tokens`; also return the result of the longer run."""
    started_s = time.perf_counter()
    generate(1)
    between_s = time.perf_counter()
    made = generate(new_tokens)
    ended_s = time.perf_counter()
    first_ms, total_ms = 1e3 * (between_s - started_s), 1e3 * (ended_s - between_s)
    return Timing(first_ms, (total_ms - first_ms) / max(new_tokens - 1, 1), total_ms), made
