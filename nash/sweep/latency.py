"""Speed-ups of a sweep's points over the dense model, on a machine that may have other work to do."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from model_store.model.model import Model
from nash.measuring.figures import Latency
from nash.measuring.latency import FAST, Workload, measure_for, quantile, speedup_quartiles, torch_threads_kept
from nash.run.progress import Watch
from server.engine.engine import Engine

BUSY = 1.25  # the report warns if the dense model's median run takes at least this many times its fast runs
_TURNS_S = 20.0  # about how long the turns of one block take
_FEWEST_TURNS, _MOST_TURNS = 21, 201


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """A point and the dense model, measured turn by turn. Latencies are those of the fast runs."""

    dense: Latency
    pruned: Latency
    speedup_quartiles: tuple[float, float]  # of the ratios of single turns
    busyness: float  # the dense model's median total over that of its fast runs; near 1 if nothing else runs

    @property
    def speedup(self) -> float:
        """How many times faster than the dense model."""
        return self.dense.total_ms / self.pruned.total_ms

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """The figures that `document` was made from."""
        return cls(
            dense=Latency(**document["dense"]),
            pruned=Latency(**document["pruned"]),
            speedup_quartiles=tuple(document["speedup_quartiles"]),
            busyness=document["busyness"],
        )

    def document(self) -> dict[str, Any]:
        """The figures as one JSON object."""
        return asdict(self)


def measure_block(
    dense: Model, pruned: Sequence[Model], workload: Workload, watch: Watch | None = None
) -> list[SideBySide]:
    """Measure models in turn: dense, A, B, ..., dense, A, B, ...; all of them are in memory at once.

    `watch` receives the number of finished turns and of all turns.
    """
    with torch_threads_kept():
        engines = [Engine.load(model, workload.config) for model in (dense, *pruned)]
        turns = measure_for(engines, workload, _TURNS_S, fewest=_FEWEST_TURNS, most=_MOST_TURNS, watch=watch)
        dense_runs, *pruned_runs = turns
    fast = quantile(dense_runs, FAST)
    return [
        SideBySide(
            dense=fast,
            pruned=quantile(runs, FAST),
            speedup_quartiles=speedup_quartiles(dense_runs, runs),
            busyness=quantile(dense_runs, 0.5).total_ms / fast.total_ms,
        )
        for runs in pruned_runs
    ]
