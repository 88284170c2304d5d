"""Speed-ups of a sweep's points over the dense model, on a machine that may have other work to do."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from model_store.model.model import Model
from nash.measuring.figures import Latency
from nash.measuring.latency import FAST, Speedup, Workload, measure_for, paired_speedup, quantile, torch_threads_kept
from nash.run.progress import Watch
from server.engine.engine import Engine

BUSY = 1.25  # the report warns if the dense model's median run takes at least this many times its fast runs
_TURNS_S = 20.0  # about how long the turns of one block take
_FEWEST_TURNS, _MOST_TURNS = 21, 201
_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """A point and the dense model, measured turn by turn. Latencies are medians."""

    dense: Latency
    pruned: Latency
    speedup: Speedup  # of the point over the dense model
    busyness: float  # the dense model's median total over that of its fast runs; near 1 if nothing else runs

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """The figures that `document` was made from."""
        return cls(
            dense=Latency(**document["dense"]),
            pruned=Latency(**document["pruned"]),
            speedup=Speedup.of(document["speedup"]),
            busyness=document["busyness"],
        )

    def document(self) -> dict[str, Any]:
        """The figures as one JSON object."""
        return asdict(self)


def measure_block(
    dense: Model, pruned: Sequence[Model], workload: Workload, watch: Watch | None = None
) -> list[SideBySide]:
    """Measure models in turn: dense, A, B, ..., dense, A, B, ...; all of them are in memory at once.

    If other work slows the dense model, the block is measured again, up to `_TRIES` times, and the quietest time
    counts: a slow model is interrupted more often than a fast one, so medians would make the fast one look too fast.
    `watch` receives the number of finished turns and of all turns.
    """
    with torch_threads_kept():
        engines = [Engine.load(model, workload.config) for model in (dense, *pruned)]
        tries: list[list[SideBySide]] = []
        for _ in range(_TRIES):
            tries.append(
                _side_by_side(
                    *measure_for(engines, workload, _TURNS_S, fewest=_FEWEST_TURNS, most=_MOST_TURNS, watch=watch)
                )
            )
            if tries[-1][0].busyness < BUSY:
                break
    return min(tries, key=lambda sides: sides[0].busyness)


def _side_by_side(dense_runs: list[Latency], *pruned_runs: list[Latency]) -> list[SideBySide]:
    middle, fast = quantile(dense_runs, 0.5), quantile(dense_runs, FAST)
    return [
        SideBySide(
            dense=middle,
            pruned=quantile(runs, 0.5),
            speedup=paired_speedup(dense_runs, runs),
            busyness=middle.total_ms / fast.total_ms,
        )
        for runs in pruned_runs
    ]
