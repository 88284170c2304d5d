"""Find out which generation kills workers, without taking others with it.

A worker that died may have died of one of the generations it had. Those it had are run again together; those that were
there a second time are suspects. Suspects run while nothing else does: all, then by halves, until one that kills a
worker alone is found, and only that one fails.
"""

from collections.abc import Container, Sequence

from server.frontend.workers.generation import Generation


class Suspects:
    """Groups of generations that have to run alone, one group after another."""

    def __init__(self) -> None:
        self._groups: list[list[Generation]] = []  # the next one is the last
        self._now: list[Generation] = []

    def __bool__(self) -> bool:
        """Whether there are any, so that others must wait."""
        return bool(self._groups or self._now)

    def after_a_death(self, had: Sequence[Generation], *, all_of_it: bool) -> Generation | None:
        """Judge what a dead worker had, and may run again; return the one that killed it, if that is certain.

        `all_of_it`: whether the worker had nothing else, which cannot run again. It is certain if one was the only one,
        and not the first time.
        """
        for generation in had:
            generation.deaths += 1
            generation.sent = False
        again = [generation for generation in had if generation.deaths > 1]
        self._now = []
        if all_of_it and len(had) == 1:
            return again[0] if again else None
        if again:
            middle = len(again) // 2
            self._groups += [again[middle:], again[:middle]] if middle else [again]
        return None

    def next(self, pending: Container[int]) -> list[Generation]:
        """The suspects to run now, of those whose ids are still pending; none if all have run."""
        while self._groups and not self._now:
            self._now = [each for each in self._groups.pop() if each.id in pending]
        return self._now

    def ended(self, generation: Generation) -> bool:
        """Note that a generation has ended; return whether it was the last one of the group that ran."""
        if generation not in self._now:
            return False
        self._now.remove(generation)
        return not self._now
