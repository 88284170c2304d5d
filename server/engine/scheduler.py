"""Which rows run in which slot. Knows no tensors.

A sequence has one row, or one per beam or sample; it is admitted with all of them. Running rows fill slots 0 to n-1
whenever a step runs. A row that ends leaves a hole; the next plan gives holes to newcomers first, and closes the rest
by moving the last rows into them.

Sequences belong to owners: those of one request have the same. Who is admitted next:

- interactive owners before those of batch priority;
- among them the owner that has been given the fewest rows so far, so that a request of one text does not wait for all
  texts of a long list; then the one that came first. The sequences of one owner keep their order;
- whoever does not fit into the free slots is passed over. A sequence that was overtaken often enough is due: it goes
  before everybody else, and if it does not fit, nobody is admitted until it does.

Light owners, which have asked for a few rows in all, have at most `slots` rows at once, and so have all others
together. The spare slots beyond let light ones in beside a request that fills the rest. `turns.py` decides who takes
part in a step.
"""

from collections import Counter, deque
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from itertools import count, islice

from server.engine.sequence import Row, Sequence, Status
from server.engine.turns import Kind

MOST_OVERTAKING, MOST_OVERTAKING_BATCH = 16, 64

# A step of a quarter of the slots takes about twice as long as one of a single row; one of all slots, six times.
LIGHT_SHARE = 4

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


@dataclass(kw_only=True, slots=True)
class _Room:
    """How many more rows may run."""

    light: int
    others: int
    total: int

    def fits(self, kind: Kind, rows: int) -> bool:
        return rows <= min(self.total, self.light if kind is Kind.LIGHT else self.others)

    def take(self, kind: Kind, rows: int) -> None:
        self.total -= rows
        if kind is Kind.LIGHT:
            self.light -= rows
        else:
            self.others -= rows


@dataclass(kw_only=True, eq=False, slots=True)
class _Owner:
    """One request, until the last of its sequences has ended."""

    number: int
    kind: Kind
    order: int  # of arrival
    waiting: deque[Sequence] = field(default_factory=deque)
    left: int = 0  # sequences that have not ended
    asked: int = 0  # rows of all its sequences, those that have ended included
    given: int = 0  # rows that were admitted

    @property
    def patience(self) -> int:
        """How many later ones may be admitted before its first sequence that waits."""
        return MOST_OVERTAKING_BATCH if self.kind is Kind.BATCH else MOST_OVERTAKING


class Scheduler:
    """Admits, places and removes sequences."""

    def __init__(self, *, slots: int, max_encode_tokens: int, max_decode_tokens: int, spare: int = 0) -> None:
        """The limits bound the work of one step, which running sequences wait for.

        `slots`: most rows of light owners, and of all others; `spare`: how many more may run at once.

        `max_encode_tokens`: encoded positions, padding included; `max_decode_tokens`: tokens that enter the decoder,
        prefixes included. A single sequence may exceed either.
        """
        self._slots = slots
        self._capacity = slots + spare
        self._most_light = max(1, slots // LIGHT_SHARE)
        self._max_encode_tokens = max_encode_tokens
        self._max_decode_tokens = max_decode_tokens
        self._owners: dict[int, _Owner] = {}
        self._by_kind: dict[Kind, dict[int, _Owner]] = {kind: {} for kind in Kind}  # in order of arrival
        self._arrivals = count()
        self._due: deque[Sequence] = deque()  # overtaken often enough; those that do not wait any more are skipped
        self._waiting = 0
        self._table: list[Row | None] = []  # by slot; None is a hole
        self._by_id: dict[int, Sequence] = {}  # waiting and running

    @property
    def waiting(self) -> int:
        """The number of sequences waiting for slots."""
        return self._waiting

    @property
    def running(self) -> int:
        """The number of running sequences."""
        return len(self._by_id) - self._waiting

    @property
    def rows(self) -> list[Row]:
        """The running rows, in slot order."""
        return [row for row in self._table if row is not None]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._by_id

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of all that wait or run."""
        return [kind for kind, owners in self._by_kind.items() if owners]

    def kind_of(self, sequence: Sequence) -> Kind:
        """Of a sequence that waits or runs."""
        return self._owners[sequence.owner].kind

    def waits(self, kind: Kind | None) -> bool:
        """Whether a sequence of this kind (None: of any) waits for a slot."""
        if kind is None or not self._waiting:
            return bool(self._waiting)
        return any(owner.waiting for owner in self._by_kind[kind].values())

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._by_id

    def add(self, sequence: Sequence) -> None:
        """Append a sequence, with its rows created, to the queue. Its id must not be in use here."""
        assert sequence.id not in self._by_id, f"sequence {sequence.id} is already there"
        assert 1 <= len(sequence.rows) <= self._slots, f"sequence {sequence.id} has {len(sequence.rows)} rows"
        sequence.status = Status.WAITING
        self._by_id[sequence.id] = sequence
        owner = self._owners.get(sequence.owner)
        if owner is None:
            kind = Kind.BATCH if sequence.batch else Kind.LIGHT
            owner = _Owner(number=sequence.owner, kind=kind, order=next(self._arrivals))
            self._owners[owner.number] = self._by_kind[kind][owner.number] = owner
        owner.waiting.append(sequence)
        owner.left += 1
        owner.asked += len(sequence.rows)
        self._waiting += 1
        if owner.kind is Kind.LIGHT and owner.asked > self._most_light:
            del self._by_kind[owner.kind][owner.number]
            owner.kind = Kind.HEAVY
            self._by_kind[owner.kind][owner.number] = owner

    def remove(self, sequence_id: int, status: Status) -> Sequence | None:
        """Remove a waiting or running sequence and give it its final status; None if it is not there."""
        sequence = self._by_id.pop(sequence_id, None)
        if sequence is None:
            return None
        owner = self._owners[sequence.owner]
        if sequence.status is Status.WAITING:
            owner.waiting.remove(sequence)
            self._waiting -= 1
        for row in sequence.rows:
            self._vacate(row)
        owner.left -= 1
        if not owner.left:
            del self._owners[owner.number], self._by_kind[owner.kind][owner.number]
        sequence.rows = []
        sequence.status = status
        return sequence

    def release(self, row: Row) -> None:
        """Remove one row of a sequence whose other rows keep running."""
        assert len(row.sequence.rows) > 1, f"the only row of sequence {row.sequence.id} ends with it"
        row.sequence.rows.remove(row)
        self._vacate(row)

    def plan(self, turn: Kind | None = None) -> StepPlan:
        """Admit what fits and is of the kind whose `turn` it is (None: any kind), and close the holes.

        Afterwards the running rows fill slots 0 to n-1.
        """
        if not self._waiting and None not in self._table:
            return StepPlan(moves=[], batches=[])
        holes = [slot for slot, row in enumerate(self._table) if row is None]
        admitted = self._admit(turn) if self._waiting else []
        for sequence in admitted:
            for row in sequence.rows:
                if holes:
                    self._place(row, holes.pop(0))
                else:
                    self._table.append(None)
                    self._place(row, len(self._table) - 1)
        return StepPlan(moves=self._close(holes), batches=self._batches(admitted))

    def _admit(self, turn: Kind | None) -> list[Sequence]:
        """Take from the queue what fits into the free slots and the limits of a step."""
        room = _Room(light=self._slots, others=self._slots, total=self._capacity)
        for row in self.rows:
            room.take(self.kind_of(row.sequence), 1)
        admitted: list[Sequence] = []
        encoded, decoded = 0, sum(row.fresh for row in self.rows)
        while room.total > 0:
            owner, overtaken = self._next(room, turn)
            if owner is None:
                break
            sequence = owner.waiting[0]
            rows = len(sequence.rows)
            encoded += len(sequence.source_ids)
            decoded += rows * sequence.rows[0].fresh
            if admitted and (encoded > self._max_encode_tokens or decoded > self._max_decode_tokens):
                break
            owner.waiting.popleft()
            self._waiting -= 1
            owner.given += rows
            room.take(owner.kind, rows)
            sequence.status = Status.RUNNING
            admitted.append(sequence)
            self._note_overtaken(overtaken)
        return admitted

    def _next(self, room: _Room, turn: Kind | None) -> tuple[_Owner | None, list[_Owner]]:
        """The owner whose first sequence is admitted next, if there is one, and those that it overtakes."""
        queued: set[Kind] = set()  # behind one that is due: it is not others that they wait for
        for due in self._first_due():
            owner = self._owners[due.owner]
            if room.fits(owner.kind, len(due.rows)):
                return owner, []
            if len(due.rows) > room.total:
                return None, []
            # It waits for others of its sort to end, and nobody else is in its way.
            queued |= {kind for kind in Kind if (kind is Kind.LIGHT) is (owner.kind is Kind.LIGHT)}
        for kinds in ((Kind.LIGHT, Kind.HEAVY), (Kind.BATCH,)):
            seen: list[_Owner] = []
            fit: list[_Owner] = []
            for kind in kinds:
                first, looked_at = self._first_of(kind, room)
                seen += looked_at
                if first is not None and kind not in queued and turn in {None, kind}:
                    fit.append(first)
            if fit:
                owner = min(fit, key=lambda each: (each.given, each.order))
                if owner.kind is not Kind.BATCH:
                    seen += islice((each for each in self._by_kind[Kind.BATCH].values() if each.waiting), 1)
                return owner, [each for each in seen if each.kind not in queued and _overtakes(owner, each, room)]
        return None, []

    def _first_of(self, kind: Kind, room: _Room) -> tuple[_Owner | None, list[_Owner]]:
        """The next owner of a kind that fits, if there is one, and all that were looked at."""
        first: _Owner | None = None
        seen: list[_Owner] = []
        if not room.fits(kind, 1):
            return first, seen
        for owner in self._by_kind[kind].values():
            if not owner.waiting:
                continue
            seen.append(owner)
            if room.fits(kind, len(owner.waiting[0].rows)):
                if first is None or owner.given < first.given:
                    first = owner
                if not owner.given:
                    break  # nobody was given less
        return first, seen

    def _first_due(self) -> list[Sequence]:
        """Those that have been due for longest, of light owners and of all others: neither waits for the other."""
        self._due = deque(sequence for sequence in self._due if sequence.status is Status.WAITING)
        first: dict[bool, Sequence] = {}
        for sequence in self._due:
            first.setdefault(self._owners[sequence.owner].kind is Kind.LIGHT, sequence)
        return list(first.values())

    def _note_overtaken(self, owners: list[_Owner]) -> None:
        for owner in owners:
            head = owner.waiting[0]
            head.overtaken += 1
            if head.overtaken == owner.patience:
                self._due.append(head)

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
        assert len(self._table) <= self._capacity, "more rows than slots"
        owners = list(self._owners.values())
        queued = [sequence for owner in owners for sequence in owner.waiting]
        waiting = {sequence.id for sequence in queued}
        assert len(waiting) == len(queued) == self._waiting, "a sequence waits twice"
        left = Counter(sequence.owner for sequence in self._by_id.values())
        assert {owner.number: owner.left for owner in owners} == left, "an owner's sequences are miscounted"
        assert all(self._by_kind[owner.kind][owner.number] is owner for owner in owners), "an owner of another kind"
        assert sum(map(len, self._by_kind.values())) == len(owners), "an owner of two kinds"
        running = {row.sequence.id for row in self.rows}
        assert not waiting & running, "a sequence waits and runs"
        assert waiting | running == set(self._by_id), "a sequence is lost"
        assert all(each.overtaken <= owner.patience for owner in owners for each in owner.waiting), (
            "overtaken too often"
        )
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


def _overtakes(owner: _Owner, other: _Owner, room: _Room) -> bool:
    """Whether one that came earlier has to wait longer because of this one."""
    rows = len(other.waiting[0].rows)
    if (owner.kind is Kind.LIGHT) is not (other.kind is Kind.LIGHT) and rows <= room.total:
        return room.fits(other.kind, rows) and other.order < owner.order  # else it waits for others of its sort
    return other.order < owner.order


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
