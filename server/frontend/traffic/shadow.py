"""Run requests that were answered once more, on two variants, while nobody waits: how much faster, and how alike?

Dense and pruned traffic may differ in kind, so their ordinary times cannot be compared. A pair here is one request, run
on both variants right after each other on an idle machine, in turns the one or the other first. A caller never waits
for it: when a request comes, what runs here is stopped and tried again later.
"""

import asyncio
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from server.errors import ApiError
from server.frontend.metrics import Metrics
from server.frontend.requests.request import TextRequest
from server.frontend.traffic.weights import ShadowPlan
from server.frontend.variant import Variant
from server.frontend.workers.generation import Generation
from server.messages import Finished
from server.text.agreement import rouge_l

CLOSE = 0.9  # the least ROUGE-L of answers that are called close

_MOST_WAITING = 64
_MOST_TRIES = 5
_REST_S = 0.02  # without requests, before a pair is begun


@dataclass
class _Pair:
    source: Variant
    target: Variant
    request: TextRequest
    tries: int = 0


@dataclass
class ShadowFigures:
    """What the pairs of one model and target have shown since they began."""

    agreement: Counter[str] = field(default_factory=Counter)
    log_speedups: float = 0.0  # their sum

    @property
    def pairs(self) -> int:
        return self.agreement.total()


class Shadow:
    """The pairs of one server, one after another."""

    def __init__(self, metrics: Metrics, variants: Callable[[], Sequence[Variant]], busy: Callable[[], bool]) -> None:
        """`variants` are those that are served; `busy`: whether the machine has something else to do."""
        self._metrics = metrics
        self._variants = variants
        self._busy = busy
        self._waiting: deque[_Pair] = deque(maxlen=_MOST_WAITING)  # the oldest are dropped
        self._wanted = asyncio.Event()
        self._running: asyncio.Task[float] | None = None
        self._task: asyncio.Task[None] | None = None
        self._turn = 0
        self.figures: dict[tuple[str, str], ShadowFigures] = {}  # by model and target

    def start(self) -> None:
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def offer(self, source: Variant, target: Variant, request: TextRequest, plan: ShadowPlan) -> None:
        """A request that `source` has answered: perhaps a pair. Sampled answers are not comparable."""
        if request.source_ids is not None or source.draws(request) or target.draws(request):
            return
        for i in range(len(request.texts)):
            if random.random() < plan.fraction:
                self._waiting.append(_Pair(source, target, request.alone(i)))
                self._wanted.set()

    def interrupt(self) -> None:
        """A caller has come: stop what runs here."""
        if self._running is not None:
            self._running.cancel()

    async def _work(self) -> None:
        while True:
            await self._wanted.wait()
            if not self._waiting:
                self._wanted.clear()
                continue
            idle_before = not self._busy()
            await asyncio.sleep(_REST_S)
            if not idle_before or self._busy() or not self._waiting:
                continue
            pair = self._waiting.popleft()
            if not {pair.source, pair.target} <= set(self._variants()):
                continue  # it was unloaded, or another version is served
            pair.tries += 1
            try:
                await self._compare(pair)
            except asyncio.CancelledError:
                if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                    raise
                if pair.tries < _MOST_TRIES:
                    self._waiting.append(pair)
            except ApiError:
                continue  # a variant has gone, or refuses what the other one takes

    async def _compare(self, pair: _Pair) -> None:
        self._turn += 1
        both = (pair.source, pair.target) if self._turn % 2 else (pair.target, pair.source)
        seen: dict[Variant, tuple[str, float]] = {}
        for variant in both:
            self._running = asyncio.create_task(self._run(variant, pair.request, seen))
            try:
                await self._running
            finally:
                self._running = None
        (text, ms), (other_text, other_ms) = seen[pair.source], seen[pair.target]
        speedup = ms / other_ms
        how = _how_alike(text, other_text)
        target = pair.target
        self._metrics.shadowed(target.model, target.variant, how, speedup)
        figures = self.figures.setdefault((target.model, target.variant), ShadowFigures())
        figures.agreement[how] += 1
        figures.log_speedups += math.log(speedup)

    async def _run(self, variant: Variant, request: TextRequest, seen: dict[Variant, tuple[str, float]]) -> float:
        generations: list[Generation] = []
        try:
            generations = await variant.admit(request, "shadow")
            finished: Finished = await generations[0].result()
        finally:
            variant.cancel(generations)
        ms = finished.timings.total_ms - finished.timings.queue_ms
        seen[variant] = generations[0].answers(finished, by_token=False)[0].text, ms
        return ms


def _how_alike(text: str, other: str) -> str:
    if text == other:
        return "exact"
    return "close" if rouge_l(text.split(), other.split()) >= CLOSE else "different"
