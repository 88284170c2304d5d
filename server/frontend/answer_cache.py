"""Answers that were given before, for requests that are the same to the last bit. Off unless it gets some memory.

Only what a request determines wholly is kept: no draws, unless the caller gave a seed. A request that equals one which
is still being answered waits for it instead of being computed again. What is kept belongs to one loaded version, and
goes with it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from server.engine.interface.parameters import GenerationParameters
from server.errors import ApiError, ClientGoneError, GenerationError, TimedOutError
from server.frontend.metrics import VariantMetrics
from server.frontend.workers.generation import Generation
from server.messages import Finished
from server.settings import Settings

_BASE_BYTES = 2_000  # of an entry without its tokens: keys, objects, the dictionary
_TOKEN_BYTES = 40


class CacheKey(NamedTuple):
    """What an answer follows from, besides the model."""

    source_ids: tuple[int, ...]
    parameters: GenerationParameters
    stops: tuple[str, ...]


class AnswerCache:
    """The answers of one variant, the least recently used ones dropped first."""

    def __init__(self, settings: Settings, metrics: VariantMetrics, run: Callable[[Generation], None]) -> None:
        """`run` accepts a generation, or raises `ApiError`."""
        self._settings = settings
        self._metrics = metrics
        self._run = run
        self._kept: OrderedDict[CacheKey, tuple[Finished, int]] = OrderedDict()
        self._bytes = 0
        # Who waits for the same, by what is being computed, and whether with batch priority.
        self._running: dict[tuple[CacheKey, bool], list[Generation]] = {}

    @property
    def on(self) -> bool:
        return self._settings.cache_bytes > 0

    @staticmethod
    def key(generation: Generation, given: GenerationParameters) -> CacheKey | None:
        """None if it draws, and each time anew. `given` has no seed unless the caller, or the model, gave one."""
        if given.do_sample and given.seed is None:
            return None
        return CacheKey(tuple(generation.source_ids), given, tuple(generation.stops))

    def knows(self, key: CacheKey, generation: Generation) -> bool:
        """Whether an equal request was answered before, or is being answered with no lower priority."""
        return key in self._kept or self._joinable(key, generation) is not None

    def answer(self, generation: Generation, key: CacheKey) -> None:
        """Give a generation the answer of an equal one, which is known: now, or when that one has it."""
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            self._metrics.looked_up("hit")
            self._reuse(generation, kept[0])
            return
        self._metrics.looked_up("joined")
        running = self._joinable(key, generation)
        assert running is not None, "callers ask whether it is known"
        self._running[running].append(generation)
        left_s = generation.left_s(self._settings.total_s)
        generation.deadline = asyncio.get_running_loop().call_later(left_s, self._expire, generation)

    def runs(self, generation: Generation, key: CacheKey) -> None:
        """A new one was accepted: its answer will be kept, and given to those that wait for it."""
        self._metrics.looked_up("miss")
        self._follow(generation, key)

    def leave(self, generation: Generation, error: ApiError) -> None:
        """Take a generation from those that wait; others are left alone."""
        for waiting in self._running.values():
            if generation in waiting:
                waiting.remove(generation)
                self._fail(generation, error)

    def _expire(self, generation: Generation) -> None:
        limit_s = min(self._settings.total_s, generation.timeout_s)
        self.leave(generation, TimedOutError(f"the request took more than {limit_s:g} s: try again later"))

    def _joinable(self, key: CacheKey, generation: Generation) -> tuple[CacheKey, bool] | None:
        priorities = (False, True) if generation.batch else (False,)
        return next(((key, batch) for batch in priorities if (key, batch) in self._running), None)

    def _follow(self, generation: Generation, key: CacheKey) -> None:
        self._running.setdefault((key, generation.batch), [])
        generation.when_done(lambda: self._done(generation, key))

    def _done(self, generation: Generation, key: CacheKey) -> None:
        waiting = self._running.pop((key, generation.batch), [])
        outcome = generation.outcome
        if isinstance(outcome, Finished):
            self._keep(key, outcome)
            for each in waiting:
                self._reuse(each, outcome)
            return
        # What befell this caller alone, the others try for themselves; the request's own fault is theirs too.
        its_own = isinstance(outcome, ClientGoneError | TimedOutError) or generation.delivered
        if its_own and waiting:
            first, *rest = sorted(waiting, key=lambda each: each.batch)
            try:
                self._run(first)
            except ApiError as error:
                outcome = error
            else:
                self._follow(first, key)
                self._running[key, first.batch] += rest
                return
        for each in waiting:
            self._fail(each, outcome if isinstance(outcome, ApiError) else GenerationError(str(outcome)))

    def _reuse(self, generation: Generation, finished: Finished) -> None:
        self._metrics.ended("ok")  # and nothing of its times: the engine had none
        generation.reuse(finished)

    def _fail(self, generation: Generation, error: ApiError) -> None:
        self._metrics.ended(error.outcome)
        generation.fail(error)

    def _keep(self, key: CacheKey, finished: Finished) -> None:
        tokens = len(key.source_ids) + sum(
            len(each.tokens) + len(each.logprobs) + 3 * sum(map(len, each.top_tokens)) for each in finished.hypotheses
        )
        size = _BASE_BYTES + _TOKEN_BYTES * tokens
        if size > self._settings.cache_bytes:
            return
        if (before := self._kept.pop(key, None)) is not None:
            self._bytes -= before[1]
        self._kept[key] = finished, size
        self._bytes += size
        self.fit()

    def fit(self) -> None:
        """Drop what is more than it may hold, the least recently used first."""
        while self._bytes > self._settings.cache_bytes:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= dropped
