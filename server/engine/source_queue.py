"""When newcomers' sources are encoded: at once, or a little at a time between the steps of running sequences."""

import time
from collections import deque
from collections.abc import Sequence as Ordered

from server.engine.backend import Backend, KeepingBackend, SlicedBackend
from server.engine.sequence import Row, Sequence
from server.engine.source_cache import SourceCache

LONGEST_PAUSE_S = 0.025  # of running sequences, for newcomers encoded at once: invisible in a growing text
LONGEST_STEP = 1.49  # a step with a slice of a long source, as a multiple of a step without
LEAST_SHARE = 0.3  # of a step's time, for each long source: it progresses even if steps have become longer
_RECENT = 4  # steps


class SourceQueue:
    """Sequences that have slots but whose sources the decoder cannot read yet.

    While others run, sources that take longer than LONGEST_PAUSE_S are encoded in slices, one after the other in the
    order of arrival; shorter sources do not wait for longer ones. Each waiting source adds its share to the slices:
    when many arrive, the steps of running sequences must not hold up all newcomers. Where there is a cache, sources of
    sequences that may reuse them are read from it.
    """

    def __init__(self, backend: Backend, cache_bytes: int = 0) -> None:
        self._backend = backend
        self._keeper = backend if cache_bytes and isinstance(backend, KeepingBackend) else None
        self._cache = SourceCache(cache_bytes)
        self._sliced = backend if isinstance(backend, SlicedBackend) else None
        self._long: deque[Sequence] = deque()
        self._begun = False  # whether the first of them is in progress
        self._credit_s = 0.0  # what slices left unused, because no further block of rows fitted
        self._alone_s = 0.0  # recent time of a step without slices
        self._sliced_last = False  # whether the last `run` had slices
        self._position_s = 0.0  # last measured time per position; 0 before the first
        # Of the last `run`:
        self.encoded_tokens = 0  # of sources whose encoding finished
        self.padding_tokens = 0  # positions computed for nothing
        self.hits = 0  # sources read from the cache
        self.misses = 0  # sources that were not there and may be next time

    def __bool__(self) -> bool:
        return bool(self._long)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._long

    def run(self, batches: Ordered[Ordered[Sequence]], *, step_s: float | None) -> list[Sequence]:
        """Encode newcomers and continue waiting sources; returns the sequences that can now be decoded.

        `step_s` is how long a step of the running sequences takes; None if none runs.
        """
        batches, ready = self._reused(batches)
        at_once = batches
        if self._sliced is not None and step_s is not None:
            at_once, long = self._divided(batches)
            self._long.extend(long)
        encoded = self._encode(at_once)
        if step_s is not None and not self._sliced_last:
            self._alone_s += (step_s - self._alone_s) / (_RECENT if self._alone_s else 1)
        self._sliced_last = bool(self._long)
        if self._long and step_s is not None:
            encoded += self._run_slices(self._share_s(step_s) * len(self._long))
        elif self._long and not encoded:
            encoded = self._run_slices(None)
        self.encoded_tokens = sum(len(sequence.source_ids) for sequence in encoded)
        self._keep(encoded)
        return ready + encoded

    def _reused(self, batches: Ordered[Ordered[Sequence]]) -> tuple[Ordered[Ordered[Sequence]], list[Sequence]]:
        """The batches without the sequences whose sources are kept, and these, which can read them now."""
        self.hits = self.misses = 0
        if self._keeper is None:
            return batches, []
        ready: list[Sequence] = []
        for sequence in (each for batch in batches for each in batch if each.reuses_source):
            if (encoded := self._cache.get(sequence.source_ids)) is None:
                self.misses += 1
                continue
            self._keeper.restore_source(encoded, len(sequence.source_ids), [slot_of(row) for row in sequence.rows])
            ready.append(sequence)
        self.hits = len(ready)
        return [left for batch in batches if (left := [each for each in batch if each not in ready])], ready

    def _keep(self, encoded: list[Sequence]) -> None:
        """Copy what was encoded for later, before its slots change."""
        for sequence in encoded:
            if self._keeper is not None and sequence.reuses_source:
                self._cache.put(sequence.source_ids, self._keeper.copy_of_source(slot_of(sequence.rows[0])))

    def drop(self, sequence: Sequence) -> None:
        """Forget a cancelled sequence, if it is here."""
        if sequence not in self._long:
            return
        if self._begun and self._long[0] is sequence:
            assert self._sliced is not None, "only a sliced backend begins a source"
            self._sliced.drop_source()
            self._begun = False
        self._long.remove(sequence)

    def _divided(self, batches: Ordered[Ordered[Sequence]]) -> tuple[list[Ordered[Sequence]], list[Sequence]]:
        """The batches that together fit into the longest pause, shortest first; and the other sequences."""
        at_once: list[Ordered[Sequence]] = []
        long: list[Sequence] = []
        pause_s = 0.0
        for batch in sorted(batches, key=_positions):
            pause_s += _positions(batch) * self._position_s
            if pause_s <= LONGEST_PAUSE_S:
                at_once.append(batch)
            else:
                long.extend(batch)
        return at_once, long

    def _share_s(self, step_s: float) -> float:
        """The time that the longest step leaves for one source.

        With slices, a step itself takes longer: the encoder's weights have evicted the decoder's from the cache.
        """
        return max(LONGEST_STEP * min(self._alone_s, step_s) - step_s, LEAST_SHARE * step_s)

    def _encode(self, batches: Ordered[Ordered[Sequence]]) -> list[Sequence]:
        """Encode whole sources, and record the time per position."""
        self.padding_tokens = 0
        begun_s = time.monotonic()
        for batch in batches:
            self.padding_tokens += self._backend.encode(
                [sequence.source_ids for sequence in batch],
                [[slot_of(row) for row in sequence.rows] for sequence in batch],
            )
        if batches:
            self._position_s = (time.monotonic() - begun_s) / sum(map(_positions, batches))
        return [sequence for batch in batches for sequence in batch]

    def _run_slices(self, seconds: float | None) -> list[Sequence]:
        """Encode for about `seconds`, or all to the end if None."""
        assert self._sliced is not None, "only a sliced backend is given long sources"
        ready: list[Sequence] = []
        end_s = None if seconds is None else time.monotonic() + self._credit_s + seconds
        while self._long:
            left_s = None if end_s is None else end_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                break
            first = self._long[0]
            if not self._begun:
                self._sliced.begin_source(first.source_ids, [slot_of(row) for row in first.rows])
                self._begun = True
            if not self._sliced.go_on(left_s):
                break
            ready.append(self._long.popleft())
            self._begun = False
        # Keep at most one slice: time lost to something else is not made up for.
        self._credit_s = 0.0
        if self._long and end_s is not None and seconds is not None:
            self._credit_s = min(max(end_s - time.monotonic(), -seconds), seconds)
        return ready


def _positions(batch: Ordered[Sequence]) -> int:
    return sum(len(sequence.source_ids) for sequence in batch)


def slot_of(row: Row) -> int:
    """The slot of a running row."""
    assert row.slot is not None, f"sequence {row.sequence.id} does not run"
    return row.slot
