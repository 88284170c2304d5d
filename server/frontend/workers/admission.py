"""How much work of one variant may wait, and when refused requests should retry.

Work is counted in rows, of which a text has one for each beam or sample, and in tokens: those of the sources, and those
that the rows may make. Two rules keep large requests from locking others out. What has batch priority takes only the
room that others leave. And a small request may still wait where a large one may not.
"""

import math
from collections import Counter, deque
from dataclasses import dataclass

from server.engine.interface.parameters import GenerationParameters
from server.errors import InvalidInputError, OverloadedError

_SAMPLES = 64
_CAUTION = 0.8  # of the time that a request may wait: the next rows may take longer than those of late
_SMALL_SHARE = 4  # a small request has at most this part of the slots


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a generation, or a whole request, may take."""

    rows: int
    tokens: int

    @classmethod
    def of(cls, parameters: GenerationParameters, *, source_tokens: int, texts: int = 1) -> "Work":
        """The work of `texts` generations with so many source tokens together."""
        rows = texts * parameters.rows
        return cls(rows=rows, tokens=source_tokens + rows * parameters.max_new_tokens)

    def __add__(self, other: "Work") -> "Work":
        return Work(rows=self.rows + other.rows, tokens=self.tokens + other.tokens)

    def __sub__(self, other: "Work") -> "Work":
        return Work(rows=self.rows - other.rows, tokens=self.tokens - other.tokens)


NOTHING = Work(rows=0, tokens=0)


class Admission:
    """Bounds what one variant has accepted, and knows how long its slots are taken."""

    def __init__(self, *, slots: int, max_queue: int, max_queue_tokens: int) -> None:
        self._slots = slots
        self._max_queue = max_queue
        self._max_queue_tokens = max_queue_tokens
        self._accepted = {False: NOTHING, True: NOTHING}  # and not ended, by whether it has batch priority
        self._rows: Counter[int] = Counter()  # of them, by request
        # Rows that a newcomer's first row may have to wait for; a small one only for small ones.
        self._ahead = {False: 0, True: 0}
        self._small_ahead = 0
        self._held: deque[tuple[int, float]] = deque(maxlen=_SAMPLES)  # rows that ended, and how long they had slots

    def enter(self, request: int, work: Work, *, batch: bool) -> None:
        """Count a generation of a request that was accepted."""
        self._accepted[batch] += work
        self._change_rows(request, work.rows, batch)

    def resize(self, *, max_queue: int, max_queue_tokens: int) -> None:
        """Let other numbers wait. What waits already stays."""
        self._max_queue = max_queue
        self._max_queue_tokens = max_queue_tokens

    def leave(self, request: int, work: Work, *, batch: bool) -> None:
        """Count one that has ended, in whatever way."""
        self._accepted[batch] -= work
        self._change_rows(request, -work.rows, batch)

    def finished(self, rows: int, seconds: float) -> None:
        """Note that a generation had so many slots for so long."""
        self._held.append((rows, seconds))

    def check(self, wanted: Work, *, batch: bool, within_s: float) -> None:
        """Refuse a request that finds no room, or would wait for its first slot longer than `within_s`.

        Raises:
            InvalidInputError: there would never be room for so much.
            OverloadedError: there is none now; `retry_after_s` is when there will be, as fast as slots come free.
        """
        self._check_alone(wanted)
        before = self._accepted[False] + self._accepted[True] if batch else self._accepted[False]
        small = not batch and self._small(wanted.rows)
        most_rows = self._slots + self._max_queue + (self._slots if small else 0)
        after = before + wanted
        waiting = max(0, before.rows - self._slots)
        if after.rows > most_rows:
            self._refuse(
                f"{waiting} of at most {self._max_queue} rows are waiting, {wanted.rows} more came",
                after.rows - most_rows,
            )
        if after.tokens > self._max_queue_tokens:
            excess = (after.tokens - self._max_queue_tokens) / after.tokens
            self._refuse(
                f"{before.tokens} tokens are to be read and made, {wanted.tokens} more came", excess * after.rows
            )
        ahead = self._small_ahead if small else self._ahead[False] + (self._ahead[True] if batch else 0)
        if (most := self._most_ahead(within_s)) <= ahead:
            self._refuse(f"it may wait {within_s:.3g} s, and would wait longer behind {waiting} rows", ahead + 1 - most)

    def _small(self, rows: int) -> bool:
        return rows * _SMALL_SHARE <= self._slots

    def _check_alone(self, wanted: Work) -> None:
        most_rows = self._slots + self._max_queue
        if wanted.rows > most_rows:
            raise InvalidInputError(
                f"the request asks for {wanted.rows} rows, one for each text's beam or sample, but no more than "
                f"{most_rows} can run and wait: send fewer at once"
            )
        if wanted.tokens > self._max_queue_tokens:
            raise InvalidInputError(
                f"the request may take {wanted.tokens} tokens, of its texts and of its answers by max_new_tokens, but "
                f"no more than {self._max_queue_tokens} can run and wait: send less at once"
            )

    def _refuse(self, why: str, rows: float) -> None:
        each_s = self._seconds_a_row()
        rest_s = 1 if each_s is None else max(1, math.ceil(rows * each_s))
        raise OverloadedError(
            f"the queue is full: {why}; try again in {rest_s} s, or send less at once", retry_after_s=rest_s
        )

    def _most_ahead(self, within_s: float) -> float:
        """Behind how many rows a slot comes free in this time; without end as long as nothing is known.

        Rows that began together end together, so slots may come free in waves.
        """
        each_s = self._seconds_a_row()
        return self._slots * (1 + _CAUTION * within_s // (each_s * self._slots)) if each_s else math.inf

    def _seconds_a_row(self) -> float | None:
        """The time between two rows' ends while all slots are taken, from how long rows have theirs (Little's law)."""
        rows = sum(count for count, _ in self._held)
        return sum(count * seconds for count, seconds in self._held) / rows / self._slots if rows else None

    def _change_rows(self, request: int, change: int, batch: bool) -> None:
        """Of a large request, others wait for as many rows as there are slots, and then it is their turn."""
        before = self._rows[request]
        after = self._rows[request] = before + change
        self._ahead[batch] += min(after, self._slots) - min(before, self._slots)
        if not batch:
            self._small_ahead += after * self._small(after) - before * self._small(before)
        if not self._rows[request]:
            del self._rows[request]
