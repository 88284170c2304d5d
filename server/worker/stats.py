"""Collects what a worker reports about its steps, so that reporting costs almost nothing."""

import resource
import sys
import time
from collections.abc import Collection
from typing import Protocol

from server.engine.interface.config import EngineLimits
from server.engine.sequence import Sequence, Status
from server.messages import Stats

_PERIOD_S = 0.05


class Step(Protocol):
    """What one step of the engine did."""

    @property
    def encode_s(self) -> float: ...  # 0 if nothing was admitted
    @property
    def decode_s(self) -> float: ...
    @property
    def steps(self) -> int: ...  # decode steps: `decode_s` is their total, `batch_size` that of each
    @property
    def batch_size(self) -> int: ...
    @property
    def generated_tokens(self) -> int: ...
    @property
    def source_tokens(self) -> int: ...
    @property
    def padding_tokens(self) -> int: ...
    @property
    def source_hits(self) -> int: ...
    @property
    def source_misses(self) -> int: ...
    @property
    def path(self) -> str | None: ...  # "graph" or "eager", if there are graphs


class StatsCollector:
    """Collects steps and says when the next `Stats` is due: at most one per 50 ms, none while nothing happens."""

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._taken_s = 0.0
        self._clear()

    def _clear(self) -> None:
        self._noted = False
        self._decode_step_s: list[float] = []
        self._encode_s: list[float] = []
        self._batch_sizes: list[int] = []
        self._steps_by_path: dict[str, int] = {}
        self._source_lookups = {"hit": 0, "miss": 0}
        self._source_tokens = self._padding_tokens = self._generated_tokens = 0

    def note(self, step: Step) -> None:
        """Record one step."""
        self._noted = True
        self._decode_step_s += [step.decode_s / step.steps] * step.steps
        self._batch_sizes += [step.batch_size] * step.steps
        self._generated_tokens += step.generated_tokens
        self._source_lookups["hit"] += step.source_hits
        self._source_lookups["miss"] += step.source_misses
        if step.path is not None:
            self._steps_by_path[step.path] = 1 + self._steps_by_path.get(step.path, 0)
        if step.encode_s > 0:
            self._encode_s.append(step.encode_s)
            self._source_tokens += step.source_tokens
            self._padding_tokens += step.padding_tokens

    def changed(self) -> None:
        """Record that a sequence left without a step, so the state must be reported again."""
        self._noted = True

    def due_in_s(self) -> float | None:
        """Seconds until `take` should be called, 0.0 for now; None if there is nothing to report."""
        if not self._noted:
            return None
        return max(0.0, self._taken_s + _PERIOD_S - time.monotonic())

    def take(self, sequences: Collection[Sequence]) -> Stats:
        """What was collected since the last call, and the current state; `sequences` are all that wait or run."""
        running = [sequence for sequence in sequences if sequence.status is Status.RUNNING]
        limits = self._limits
        slots = limits.slots + limits.spare_slots
        source_tokens = sum(len(sequence.source_ids) * len(sequence.rows) for sequence in running)
        target_tokens = sum(len(row.history) - row.fresh for sequence in running for row in sequence.rows)
        stats = Stats(
            decode_step_s=self._decode_step_s,
            encode_s=self._encode_s,
            batch_sizes=self._batch_sizes,
            source_tokens=self._source_tokens,
            padding_tokens=self._padding_tokens,
            generated_tokens=self._generated_tokens,
            running=len(running),
            waiting=len(sequences) - len(running),
            cache_used_ratio={
                "self": target_tokens / (slots * limits.max_new_tokens),
                "cross": source_tokens / (slots * limits.max_source_tokens),
            },
            peak_bytes=_peak_bytes(),
            steps_by_path=self._steps_by_path,
            source_lookups=self._source_lookups,
        )
        self._taken_s = time.monotonic()
        self._clear()
        return stats


def _peak_bytes() -> int:
    """The peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
