"""Quality and latency of finished models, measured on the engine that will serve them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from nash.data import Row
from nash.evaluate import evaluate
from nash.latency import FAST, check_workload, measure_turns, quantile, speedup_quartiles, torch_threads_kept
from nash.metrics import check_references
from nash.models import load_tokenizer
from nash.recipe import DataRecipe, MetricKind, WorkloadRecipe
from nash.workload import workload_of
from server.engine.engine import Engine
from server.engine.sequence import EngineConfig

LATENCY_REPEATS = 41  # one request takes milliseconds: a few more keep the figures still


def evaluation_config(data: DataRecipe) -> EngineConfig:
    """How a model is loaded to answer test rows."""
    return EngineConfig(max_source_tokens=data.max_source_tokens, max_new_tokens=data.max_target_tokens)


def check_assessable(
    dense: Path, rows: Sequence[Row], metric: MetricKind, data: DataRecipe, workload: WorkloadRecipe | None = None
) -> None:
    """Find out before hours of training what `assess` would refuse of the dense model, the rows or the workload.

    Raises:
        RequestError: a target is not what the metric compares with.
        server.engine.errors.EngineError: the engine refuses the model, its settings, the lengths or the workload.
    """
    check_references(metric, [row.targets for row in rows])
    with torch_threads_kept():
        Engine.load(dense, evaluation_config(data))
    check_workload(dense, workload_of(workload or WorkloadRecipe(), data, rows, load_tokenizer(dense)))


def assess(
    folders: dict[str, Path],
    rows: Sequence[Row],
    metric: MetricKind,
    data: DataRecipe,
    console: Console,
    workload: WorkloadRecipe | None = None,
) -> dict[str, Any]:
    """Figures of each model, by the models' names, ready to be kept as JSON.

    Latencies are those of the fast runs, in milliseconds under the workload (one request alone if there is none), the
    models measured in turn. Lengths that the workload leaves open are the rows' own. Where there are two models, the
    speed-up of the second over the first in the same turn is told by its quartiles.
    """
    config = evaluation_config(data)
    quality: dict[str, dict[str, float]] = {}
    for name, folder in folders.items():
        console.print(f"evaluating the {name} model on {len(rows)} rows")
        quality[name] = evaluate(folder, rows, metric, config).metrics
    measured = workload_of(workload or WorkloadRecipe(), data, rows, load_tokenizer(next(iter(folders.values()))))
    console.print(f"measuring latency: {measured}")
    engines = [Engine.load(folder, measured.config) for folder in folders.values()]
    turns = measure_turns(engines, measured, LATENCY_REPEATS)
    figures: dict[str, Any] = {"n": len(rows), "workload": asdict(measured)}
    if len(turns) == 2:
        figures["speedup_quartiles"] = list(speedup_quartiles(*turns))
    for name, latency in zip(folders, (quantile(runs, FAST) for runs in turns), strict=True):
        figures[name] = {
            "metrics": quality[name],
            "encoder_ms": latency.encode_ms,
            "step_ms": latency.step_ms,
            "total_ms": latency.total_ms,
        }
    return figures
