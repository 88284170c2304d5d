"""Which rows run in which slot. Knows no tensors.

A sequence has one row, or one per beam or sample; it is admitted with all of them. Running rows fill slots 0 to n-1
whenever a step runs. A row that ends leaves a hole; the next plan gives holes to newcomers first, and closes the rest
by moving the last rows into them.

Admission is first come, first served, except that narrower sequences may overtake one that finds too few free slots;
at most MOST_OVERTAKING overtake each.
"""

from collections import deque
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

from server.engine.sequence import Row, Sequence, Status

MOST_OVERTAKING = 16

# One more encoder batch costs about as much as this many positions: it reads all the encoder's weights again.
BATCH_POSITIONS = 32


@dataclass(frozen=True, kw_only=True)
class Move:
    """A running row changes slots; its cached state must be copied from `source` to `target`."""

    source: int
    target: int
    row: Row


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What to do before the next step: the moves, in order, then the encoder batches."""

    moves: list[Move]
    batches: list[list[Sequence]]  # the newcomers, similar lengths together


class Scheduler:
    """Admits, places and removes sequences."""

    def __init__(self, *, slots: int, max_encode_tokens: int, max_decode_tokens: int) -> None:
        """The limits bound the work of one step, which running sequences wait for.

        `max_encode_tokens`: encoded positions, padding included; `max_decode_tokens`: tokens that enter the decoder,
        prefixes included. A single sequence may exceed either.
        """
        self._slots = slots
        self._max_encode_tokens = max_encode_tokens
        self._max_decode_tokens = max_decode_tokens
        self._waiting: deque[Sequence] = deque()
        self._table: list[Row | None] = []  # by slot; None is a hole
        self._by_id: dict[int, Sequence] = {}  # waiting and running

    @property
    def waiting(self) -> int:
        """The number of sequences waiting for slots."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """The number of running sequences."""
        return len(self._by_id) - len(self._waiting)

    @property
    def rows(self) -> list[Row]:
        """The running rows, in slot order."""
        return [row for row in self._table if row is not None]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._by_id

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._by_id

    def add(self, sequence: Sequence) -> None:
        """Append a sequence, with its rows created, to the queue. Its id must not be in use here."""
        assert sequence.id not in self._by_id, f"sequence {sequence.id} is already there"
        assert 1 <= len(sequence.rows) <= self._slots, f"sequence {sequence.id} has {len(sequence.rows)} rows"
        sequence.status = Status.WAITING
        self._by_id[sequence.id] = sequence
        self._waiting.append(sequence)

    def remove(self, sequence_id: int, status: Status) -> Sequence | None:
        """Remove a waiting or running sequence and give it its final status; None if it is not there."""
        sequence = self._by_id.pop(sequence_id, None)
        if sequence is None:
            return None
        if sequence.status is Status.WAITING:
            self._waiting.remove(sequence)
        for row in sequence.rows:
            self._vacate(row)
        sequence.rows = []
        sequence.status = status
        return sequence

    def release(self, row: Row) -> None:
        """Remove one row of a sequence whose other rows keep running."""
        assert len(row.sequence.rows) > 1, f"the only row of sequence {row.sequence.id} ends with it"
        row.sequence.rows.remove(row)
        self._vacate(row)

    def plan(self) -> StepPlan:
        """Admit what fits and close the holes. Afterwards the running rows fill slots 0 to n-1."""
        if not self._waiting and None not in self._table:
            return StepPlan(moves=[], batches=[])
        holes = [slot for slot, row in enumerate(self._table) if row is None]
        admitted = self._admit(self._slots - len(self._table) + len(holes))
        for sequence in admitted:
            for row in sequence.rows:
                if holes:
                    self._place(row, holes.pop(0))
                else:
                    self._table.append(None)
                    self._place(row, len(self._table) - 1)
        return StepPlan(moves=self._close(holes), batches=self._batches(admitted))

    def _admit(self, free: int) -> list[Sequence]:
        """Take from the queue what fits into the free slots and the limits of a step."""
        admitted: list[Sequence] = []
        passed: list[Sequence] = []  # too wide for the free slots
        encoded, decoded = 0, sum(row.fresh for row in self.rows)
        while self._waiting and free and len(passed) < MOST_OVERTAKING:
            sequence = self._waiting[0]
            rows = len(sequence.rows)
            if rows > free:
                if sequence.overtaken >= MOST_OVERTAKING:
                    break
                passed.append(self._waiting.popleft())
                continue
            encoded += len(sequence.source_ids)
            decoded += rows * sequence.rows[0].fresh
            if admitted and (encoded > self._max_encode_tokens or decoded > self._max_decode_tokens):
                break
            admitted.append(self._waiting.popleft())
            sequence.status = Status.RUNNING
            free -= rows
            for other in passed:
                other.overtaken += 1
            if any(other.overtaken >= MOST_OVERTAKING for other in passed):
                break
        self._waiting.extendleft(reversed(passed))
        return admitted

    def _batches(self, sequences: list[Sequence]) -> list[list[Sequence]]:
        """Group by length to minimize the total cost of padding and batches."""
        batches = group_by_length(sequences, BATCH_POSITIONS)
        if _positions(batches) > self._max_encode_tokens:
            return group_by_length(sequences, 1)  # almost no padding
        return batches

    def _place(self, row: Row, slot: int) -> None:
        row.slot = slot
        self._table[slot] = row

    def _vacate(self, row: Row) -> None:
        if row.slot is not None:
            self._table[row.slot] = None
            row.slot = None

    def _close(self, holes: list[int]) -> list[Move]:
        moves = []
        for hole in holes:
            while self._table and self._table[-1] is None:
                self._table.pop()
            if hole >= len(self._table):
                break
            row = self._table.pop()
            assert row is not None, "the last row was a hole"
            moves.append(Move(source=len(self._table), target=hole, row=row))
            self._place(row, hole)
        return moves

    def check_integrity(self) -> None:
        """Assert what must always hold, for tests."""
        assert len(self._table) <= self._slots, "more rows than slots"
        waiting = {sequence.id for sequence in self._waiting}
        assert len(waiting) == len(self._waiting), "a sequence waits twice"
        running = {row.sequence.id for row in self.rows}
        assert not waiting & running, "a sequence waits and runs"
        assert waiting | running == set(self._by_id), "a sequence is lost"
        assert all(sequence.overtaken <= MOST_OVERTAKING for sequence in self._waiting), "overtaken too often"
        for sequence in self._by_id.values():
            assert sequence.rows, "a sequence without rows"
            assert all(row.sequence is sequence for row in sequence.rows), "a row of another sequence"
            assert len({row.index for row in sequence.rows}) == len(sequence.rows), "a row twice"
            if sequence.id in waiting:
                assert sequence.status is Status.WAITING, "a waiter's status"
                assert all(row.slot is None for row in sequence.rows), "a waiter has a slot"
            else:
                assert sequence.status is Status.RUNNING, "a runner's status"
                for row in sequence.rows:
                    assert row.slot is not None, "a runner without a slot"
                    assert self._table[row.slot] is row, "wrong slot"
        assert sum(len(self._by_id[number].rows) for number in running) == len(self.rows), "a row without its sequence"


def group_by_length(sequences: Ordered[Sequence], batch_positions: int) -> list[list[Sequence]]:
    """The cheapest grouping if a batch costs its positions, padding included, plus `batch_positions`.

    The longest come first.
    """
    ordered = sorted(sequences, key=lambda sequence: -len(sequence.source_ids))
    lengths = [len(sequence.source_ids) for sequence in ordered]
    least, start = [0] * (len(ordered) + 1), [0] * (len(ordered) + 1)  # cost of the first n, and their last batch
    for end in range(1, len(ordered) + 1):
        least[end], start[end] = min(
            (least[begin] + lengths[begin] * (end - begin) + batch_positions, begin) for begin in range(end)
        )
    batches: list[list[Sequence]] = []
    end = len(ordered)
    while end:
        batches.append(ordered[start[end] : end])
        end = start[end]
    return batches[::-1]


def _positions(batches: Ordered[Ordered[Sequence]]) -> int:
    """Positions that the batches compute, padding included."""
    return sum(len(batch) * max(len(sequence.source_ids) for sequence in batch) for batch in batches)
