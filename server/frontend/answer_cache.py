"""Answers that were given before, for requests that are the same to the last bit. Off unless it gets some memory.

Only what a request determines wholly is kept: no draws, unless the caller gave a seed. A request that equals one which
is still being answered waits for it instead of being computed again. What is kept belongs to one loaded version, and
goes with it.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.results import FinishReason
from server.errors import ApiError, ClientGoneError
from server.frontend.metrics import VariantMetrics
from server.frontend.workers.generation import Generation
from server.messages import Finished

_BASE_BYTES = 2_000  # of an entry without its tokens: keys, objects, the dictionary
_TOKEN_BYTES = 40


class CacheKey(NamedTuple):
    """What an answer follows from, besides the model."""

    source_ids: tuple[int, ...]
    parameters: GenerationParameters
    stops: tuple[str, ...]


class AnswerCache:
    """The answers of one variant, the least recently used ones dropped first."""

    def __init__(self, most_bytes: int, metrics: VariantMetrics, run: Callable[[Generation], None]) -> None:
        """`run` accepts a generation, or raises `ApiError`."""
        self._most_bytes = most_bytes
        self._metrics = metrics
        self._run = run
        self._kept: OrderedDict[CacheKey, tuple[Finished, int]] = OrderedDict()
        self._bytes = 0
        self._running: dict[CacheKey, list[Generation]] = {}  # who waits for the same, by what is being computed

    @property
    def on(self) -> bool:
        return self._most_bytes > 0

    @staticmethod
    def key(generation: Generation, given: GenerationParameters) -> CacheKey | None:
        """None if it draws, and each time anew. `given` has no seed unless the caller, or the model, gave one."""
        if given.do_sample and given.seed is None:
            return None
        return CacheKey(tuple(generation.source_ids), given, tuple(generation.stops))

    def answered(self, generation: Generation, key: CacheKey) -> bool:
        """Whether it need not run: it has its answer, or will have that of one that runs.

        If not, it is to be run now, and others may wait for it.
        """
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            self._metrics.looked_up("hit")
            self._reuse(generation, kept[0])
            return True
        if (waiting := self._running.get(key)) is not None:
            self._metrics.looked_up("joined")
            waiting.append(generation)
            return True
        self._metrics.looked_up("miss")
        return False

    def runs(self, generation: Generation, key: CacheKey) -> None:
        """A generation was accepted: its answer will be kept, and given to those that wait for it."""
        self._running.setdefault(key, [])
        generation.when_done(lambda: self._done(generation, key))

    def leave(self, generation: Generation) -> None:
        """Nobody waits for a generation any more."""
        for waiting in self._running.values():
            if generation in waiting:
                waiting.remove(generation)
                self._fail(generation, ClientGoneError("the client closed its connection"))

    def _done(self, generation: Generation, key: CacheKey) -> None:
        waiting = self._running.pop(key, [])
        finished = generation.answer_or_none
        if finished is not None:
            self._keep(key, finished)
            for each in waiting:
                self._reuse(each, finished)
        elif waiting:  # its caller has gone, or it failed: the next one tries for itself
            first, *rest = waiting
            try:
                self._run(first)
            except ApiError as error:
                for each in waiting:
                    self._fail(each, error)
                return
            self.runs(first, key)
            self._running[key] += rest

    def _reuse(self, generation: Generation, finished: Finished) -> None:
        self._metrics.ended("ok")  # and nothing of its times: the engine had none
        generation.reuse(finished)

    def _fail(self, generation: Generation, error: ApiError) -> None:
        self._metrics.ended(error.outcome)
        generation.fail(error)

    def _keep(self, key: CacheKey, finished: Finished) -> None:
        # What a stop string ended has no log-probabilities here: its tokens were reported one by one.
        if key.parameters.logprobs and any(each.finish_reason is FinishReason.STOP for each in finished.hypotheses):
            return
        tokens = len(key.source_ids) + sum(
            len(each.tokens) + len(each.logprobs) + 3 * sum(map(len, each.top_tokens)) for each in finished.hypotheses
        )
        size = _BASE_BYTES + _TOKEN_BYTES * tokens
        if size > self._most_bytes:
            return
        if (before := self._kept.pop(key, None)) is not None:
            self._bytes -= before[1]
        self._kept[key] = finished, size
        self._bytes += size
        while self._bytes > self._most_bytes:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= dropped
