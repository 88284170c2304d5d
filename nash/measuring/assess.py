"""Quality and latency of finished models, measured on the engine that will serve them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from rich.console import Console

from model_store.model.model import Model
from nash.data.rows import TaskRow
from nash.measuring.evaluate import evaluate
from nash.measuring.figures import Figures
from nash.measuring.latency import (
    Speedup,
    Workload,
    check_workload,
    measure_turns,
    paired_speedup,
    quantile,
    torch_threads_kept,
)
from nash.measuring.metrics import check_references
from nash.measuring.workload import workload_of
from nash.modeling.folders import load_tokenizer
from nash.recipes.recipe import DataRecipe, MetricKind, WorkloadRecipe
from nash.run.folder import RunFolder
from nash.run.progress import Stage
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig

RESULTS = "results.json"  # the assessment's document, in a run's folder
LATENCY_REPEATS = 41  # one request takes milliseconds, and more repeats keep the figures stable


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """Figures of a dense model, and of one pruned from it, on `n` test rows and under a workload."""

    n: int
    workload: Workload
    dense: Figures
    pruned: Figures | None = None
    speedup: Speedup | None = None  # of the pruned model over the dense one

    def document(self) -> dict[str, Any]:
        """The assessment as one JSON object."""
        return asdict(self) | {
            "dense": self.dense.document(),
            "pruned": None if self.pruned is None else self.pruned.document(),
        }

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """The assessment that `document` was made from."""
        pruned, speedup = document.get("pruned"), document.get("speedup")
        return cls(
            n=document["n"],
            workload=Workload(**document["workload"]),
            dense=Figures.of(document["dense"]),
            pruned=None if pruned is None else Figures.of(pruned),
            speedup=None if speedup is None else Speedup.of(speedup),
        )


def evaluation_config(data: DataRecipe, device: str) -> EngineConfig:
    """The configuration under which a model answers rows on a device."""
    return EngineConfig(device=device, max_source_tokens=data.max_source_tokens, max_new_tokens=data.max_target_tokens)


def check_assessable(
    dense: Model,
    rows: Sequence[TaskRow],
    metric: MetricKind,
    data: DataRecipe,
    device: str,
    workload: WorkloadRecipe | None = None,
) -> None:
    """Check, before hours of training, that `assess` will accept the dense model, the rows and the workload.

    Raises:
        RequestError: the metric cannot compare with a target.
        server.engine.errors.EngineError: the engine refuses the model, its settings, the lengths or the workload.
    """
    check_references(metric, [row.targets for row in rows])
    with torch_threads_kept():
        Engine.load(dense, evaluation_config(data, device))
    check_workload(
        dense, workload_of(workload or WorkloadRecipe(device=device), data, rows, load_tokenizer(dense.folder))
    )


def assess(
    dense: Model,
    pruned: Model | None,
    rows: Sequence[TaskRow],
    metric: MetricKind,
    data: DataRecipe,
    device: str,
    console: Console,
    workload: WorkloadRecipe | None = None,
) -> Assessment:
    """Evaluate the models on the rows and on the device, and measure their latency in turn.

    Latencies are medians under the workload, by default a single request on the device. Lengths that the workload
    leaves open come from the rows.
    """
    models = {"dense": dense} if pruned is None else {"dense": dense, "pruned": pruned}
    config = evaluation_config(data, device)
    metrics: list[dict[str, float]] = []
    for name, model in models.items():
        with Stage(f"evaluating the {name} model", console, len(rows), unit="rows") as stage:
            metrics.append(evaluate(model, rows, metric, config, stage.update).metrics)
    measured = workload_of(workload or WorkloadRecipe(device=device), data, rows, load_tokenizer(dense.folder))
    title = f"measuring latency of {measured}"
    with Stage(title, console, LATENCY_REPEATS, unit="turns", steady=True) as stage:
        engines = [Engine.load(model, measured.config) for model in models.values()]
        turns = measure_turns(engines, measured, LATENCY_REPEATS, stage.update)
    figures = [Figures(metrics=each, latency=quantile(runs, 0.5)) for each, runs in zip(metrics, turns, strict=True)]
    if pruned is None:
        return Assessment(n=len(rows), workload=measured, dense=figures[0])
    return Assessment(
        n=len(rows),
        workload=measured,
        dense=figures[0],
        pruned=figures[1],
        speedup=paired_speedup(*turns),
    )


def assess_once(
    run: RunFolder,
    dense: Model,
    pruned: Model | None,
    rows: Sequence[TaskRow],
    metric: MetricKind,
    data: DataRecipe,
    device: str,
    console: Console,
    workload: WorkloadRecipe | None = None,
) -> Assessment:
    """`assess`, or what the run's folder has of it already."""
    known = run.read_json(RESULTS)
    if known is not None:
        return Assessment.of(known)
    found = assess(dense, pruned, rows, metric, data, device, console, workload)
    run.write_json(RESULTS, found.document())
    return found
