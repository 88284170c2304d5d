"""Which sequences run in which slot. Knows no tensors.

The running sequences fill slots 0 to n-1 whenever a step runs. A sequence that ends leaves a hole; the next plan gives
holes to newcomers first, and closes those that are left by moving the last running sequences into them.
"""

from collections import deque
from dataclasses import dataclass

from server.engine.sequence import Sequence, Status


@dataclass(frozen=True, kw_only=True)
class Move:
    """A running sequence changes its slot; its cached state must be copied from `source` to `target`."""

    source: int
    target: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do before the next step: the moves in their order, then the encoding of `admitted`."""

    moves: list[Move]
    admitted: list[Sequence]


class Scheduler:
    """First come, first served, as many as there are slots."""

    def __init__(self, *, slots: int, max_encode_tokens: int) -> None:
        """`max_encode_tokens`: the most positions, padding included, that are encoded in one step."""
        self._slots = slots
        self._max_encode_tokens = max_encode_tokens
        self._waiting: deque[Sequence] = deque()
        self._rows: list[Sequence | None] = []  # by slot; None is a hole
        self._by_id: dict[int, Sequence] = {}  # waiting and running

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._waiting)

    @property
    def running(self) -> list[Sequence]:
        """The running sequences in the order of their slots."""
        return [sequence for sequence in self._rows if sequence is not None]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._by_id

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._by_id

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue. Its id must be new among those that wait or run."""
        assert sequence.id not in self._by_id, f"sequence {sequence.id} is already there"
        sequence.status = Status.WAITING
        self._by_id[sequence.id] = sequence
        self._waiting.append(sequence)

    def remove(self, sequence_id: int, status: Status) -> Sequence | None:
        """Take a sequence out, waiting or running, and give it its final status; None if it is not there."""
        sequence = self._by_id.pop(sequence_id, None)
        if sequence is None:
            return None
        if sequence.slot is None:
            self._waiting.remove(sequence)
        else:
            self._rows[sequence.slot] = None
            sequence.slot = None
        sequence.status = status
        return sequence

    def plan(self) -> Plan:
        """Admit what fits and close the holes. Afterwards the running sequences fill slots 0 to n-1."""
        holes = [slot for slot, sequence in enumerate(self._rows) if sequence is None]
        admitted = self._admit(self._slots - len(self._rows) + len(holes))
        for sequence in admitted:
            if holes:
                self._place(sequence, holes.pop(0))
            else:
                self._rows.append(None)
                self._place(sequence, len(self._rows) - 1)
        return Plan(moves=self._close(holes), admitted=admitted)

    def _admit(self, free: int) -> list[Sequence]:
        """Take from the head of the queue what one padded encoder batch may hold; always at least one."""
        admitted: list[Sequence] = []
        longest = tokens = 0
        while self._waiting and len(admitted) < free:
            size = len(self._waiting[0].source_ids)
            longest, tokens = max(longest, size), tokens + size
            padded = longest * (len(admitted) + 1)
            if admitted and (padded > self._max_encode_tokens or padded > 2 * tokens):
                break
            admitted.append(self._waiting.popleft())
        return admitted

    def _place(self, sequence: Sequence, slot: int) -> None:
        sequence.slot = slot
        sequence.status = Status.RUNNING
        self._rows[slot] = sequence

    def _close(self, holes: list[int]) -> list[Move]:
        moves = []
        for hole in holes:
            while self._rows and self._rows[-1] is None:
                self._rows.pop()
            if hole >= len(self._rows):
                break
            sequence = self._rows.pop()
            assert sequence is not None, "the last row was a hole"
            moves.append(Move(source=len(self._rows), target=hole))
            self._place(sequence, hole)
        return moves

    def check_integrity(self) -> None:
        """Assert what must always hold, for tests."""
        running = self.running
        assert len(self._rows) <= self._slots, "more rows than slots"
        assert {s.id for s in running} | {s.id for s in self._waiting} == set(self._by_id), "a sequence is lost"
        assert all(s.slot is None and s.status is Status.WAITING for s in self._waiting), "a waiter has a slot"
        for slot, sequence in enumerate(self._rows):
            assert sequence is None or (sequence.slot == slot and sequence.status is Status.RUNNING), "wrong slot"
