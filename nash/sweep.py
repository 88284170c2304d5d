"""`nash sweep`: prune one model to many shapes and draw the frontier of quality and speed.

Every point is a run folder of its own, walked as `nash prune` walks it. What is finished stays: called again, a sweep
passes over finished points, goes on with the one that was interrupted, and begins what its recipe has been given since.
"""

import dataclasses
import gc
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console

from model_store.errors import InvalidRequestError
from model_store.safetensors_header import read_header
from model_store.store import Store
from nash.assess import LATENCY_REPEATS
from nash.errors import DiskFullError, NashError, RequestError
from nash.evaluate import evaluate
from nash.latency import Latency, Workload, measure_turns, quantile, speedup_quartiles
from nash.models import read_spec
from nash.prune import Task, aimed, prepare, publish, walk
from nash.recipe import PruneRecipe
from nash.run_folder import RunFolder
from nash.sweep_page import write_report
from nash.sweep_recipe import Point, SweepRecipe
from nash.sweep_report import DenseFigures, Failure, PointFigures, SweepReport
from nash.workload import workload_of
from server.engine.engine import Engine
from server.engine.errors import EngineError
from server.engine.sequence import EngineConfig

# In a point's folder: its figures on the test rows, written when it is trained, and, once all points are, its speed.
QUALITY, LATENCY = "quality.json", "latency.json"
_BLOCK = 6  # points that are measured in turn, with the dense model among them: so many models are in memory at once


def sweep(recipe: SweepRecipe, points: Sequence[Point], out: Path, store: Store, console: Console) -> SweepReport:
    """Train what is not trained yet of the points, measure their speed side by side, and publish those asked for.

    A point that fails is in the report with its error; the others are worth no less for it.

    Raises:
        RequestError: model, data, or the targets of any point cannot be used; nothing has been trained.
        DiskFullError: and the other points would fare no better.
        NashError: every point failed.
    """
    shared = points[0].recipe
    task = prepare(shared, store)
    tasks = {point.id: _aimed(point, task) for point in points}
    settings = shared.model_dump(mode="json", include={"model", "name", "data", "metric", "workload"})
    with RunFolder(out, settings, task.inputs) as run:
        for point in points:
            if _folder(out, point).is_dir():
                with _run_folder(out, point, task):
                    pass  # one of other settings is refused now, before others are trained
        workload = workload_of(shared.workload, shared.data, task.test_rows, task.tokenizer)
        dense = _assess_dense(shared, task, workload, run, console)
        failures = _train_points(points, tasks, out, console)
        trained = [point for point in points if _done(out, point)]
        if not trained:
            raise NashError(f"every point failed, the first one thus: {failures[0].error}")
        _measure(trained, task, workload, out, console)
        report = _report(recipe, trained, task, workload, dense, failures, out)
        chosen = {"none": [], "frontier": report.on_frontier, "all": [p.id for p in report.points]}[recipe.publish]
        refs = {p.id: _publish(p, tasks[p.id], workload, dense, out, store) for p in trained if p.id in chosen}
        report = dataclasses.replace(
            report, points=[dataclasses.replace(figures, ref=refs.get(figures.id)) for figures in report.points]
        )
        write_report(report, out)
        return report


def _aimed(point: Point, task: Task) -> Task:
    try:
        return aimed(point.recipe, task)
    except (RequestError, InvalidRequestError) as error:
        raise RequestError(f"point {point.id}: {error}") from error


def _folder(out: Path, point: Point) -> Path:
    return out / "points" / point.id


def _run_folder(out: Path, point: Point, task: Task) -> RunFolder:
    return RunFolder(_folder(out, point), point.recipe.model_dump(mode="json"), task.inputs)


def _done(out: Path, point: Point) -> bool:
    folder = _folder(out, point)
    return (folder / QUALITY).is_file() and (folder / "model").is_dir()


def _assess_dense(
    shared: PruneRecipe, task: Task, workload: Workload, run: RunFolder, console: Console
) -> dict[str, float]:
    """The dense model's metrics, once for all points."""
    Engine.load(task.folder, workload.config)  # what the engine refuses of the workload is to be known before training
    metrics: dict[str, float] | None = run.read_json("dense.json")
    if metrics is None:
        console.print(f"evaluating the dense model on {len(task.test_rows)} rows")
        metrics = _evaluate(shared, task, task.folder)
        run.write_json("dense.json", metrics)
    return metrics


def _evaluate(recipe: PruneRecipe, task: Task, folder: Path) -> dict[str, float]:
    data = recipe.data
    config = EngineConfig(max_source_tokens=data.max_source_tokens, max_new_tokens=data.max_target_tokens)
    return evaluate(folder, task.test_rows, recipe.metric, config).metrics


def _train_points(points: Sequence[Point], tasks: dict[str, Task], out: Path, console: Console) -> list[Failure]:
    """Take every point that is not done to its end."""
    waiting = [point for point in points if not _done(out, point)]
    if len(waiting) < len(points):
        console.print(f"{len(points) - len(waiting)} of {len(points)} points are done already")
    failures: list[Failure] = []
    taken_s: list[float] = []
    for i, point in enumerate(waiting):
        left = f", about {_duration(fmean(taken_s) * (len(waiting) - i))} left" if taken_s else ""
        console.print(f"point {len(points) - len(waiting) + i + 1} of {len(points)}, {point.id}{left}", soft_wrap=True)
        started_s = time.monotonic()
        try:
            _train_point(point, tasks[point.id], out, console)
        except DiskFullError:
            raise
        except (NashError, EngineError, torch.OutOfMemoryError) as error:
            console.print(f"point {point.id} failed: {error}", soft_wrap=True)
            failures.append(Failure(id=point.id, error=str(error)))
        except KeyboardInterrupt:
            console.print(f"interrupted: the same command goes on with {point.id}", soft_wrap=True)
            raise
        else:
            taken_s.append(time.monotonic() - started_s)
        gc.collect()  # a trainer holds itself in cycles, and with it a whole model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return failures


def _train_point(point: Point, task: Task, out: Path, console: Console) -> None:
    with _run_folder(out, point, task) as run:
        walk(point.recipe, task, run, console)
        console.print(f"evaluating on {len(task.test_rows)} rows")
        metrics = _evaluate(point.recipe, task, run.path / "model")
        run.write_json(QUALITY, metrics)
        # A sweep has many points, and checkpoints are the largest part of each.
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes == 0:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _measure(points: Sequence[Point], task: Task, workload: Workload, out: Path, console: Console) -> None:
    """Latencies of the points that have none, in blocks: dense, A, B, ..., dense, A, B, ..., turn by turn.

    They come after all training, side by side, so that what else the machine does falls on all alike. Points that a
    sweep is given later are measured later, but beside the dense model as well: a speed-up is always within a block.
    """
    waiting = [point for point in points if not (_folder(out, point) / LATENCY).is_file()]
    for start in range(0, len(waiting), _BLOCK):
        block = waiting[start : start + _BLOCK]
        console.print(
            f"measuring latency of points {start + 1} to {start + len(block)} of {len(waiting)} beside the dense "
            f"model's: {workload}",
            soft_wrap=True,
        )
        folders = [task.folder, *(_folder(out, point) / "model" for point in block)]
        dense, *turns = measure_turns([Engine.load(f, workload.config) for f in folders], workload, LATENCY_REPEATS)
        for point, runs in zip(block, turns, strict=True):
            figures = {
                "dense": asdict(quantile(dense, 0.5)),
                "pruned": asdict(quantile(runs, 0.5)),
                "speedup_quartiles": speedup_quartiles(dense, runs),
            }
            with _run_folder(out, point, task) as run:
                run.write_json(LATENCY, figures)


def _report(
    recipe: SweepRecipe,
    points: Sequence[Point],
    task: Task,
    workload: Workload,
    dense: dict[str, float],
    failures: Sequence[Failure],
    out: Path,
) -> SweepReport:
    results = [_results(point, task, workload, dense, out) for point in points]
    sides = [result["dense"] for result in results]
    latency: dict[str, Any] = {name: fmean(s[name] for s in sides) for name in ("encoder_ms", "step_ms", "total_ms")}
    return SweepReport(
        name=points[0].recipe.name,
        metric=points[0].recipe.metric,
        n=len(task.test_rows),
        workload=workload,
        quality_kept=recipe.quality_kept,
        dense=DenseFigures(
            metrics=dense,
            decoder_layers=len(task.spec.decoder),
            **_size(task.folder),
            **latency,
        ),
        points=[_figures(point, result, out) for point, result in zip(points, results, strict=True)],
        failures=list(failures),
    )


def _results(point: Point, task: Task, workload: Workload, dense: dict[str, float], out: Path) -> dict[str, Any]:
    """A point's figures in the form of `nash.assess`."""
    with _run_folder(out, point, task) as run:
        quality, latency = run.read_json(QUALITY), run.read_json(LATENCY)

    def side(name: str, metrics: dict[str, float]) -> dict[str, Any]:
        measured = Latency(**latency[name])
        return {
            "metrics": metrics,
            "encoder_ms": measured.encode_ms,
            "step_ms": measured.step_ms,
            "total_ms": measured.total_ms,
        }

    return {
        "n": len(task.test_rows),
        "workload": asdict(workload),
        "speedup_quartiles": latency["speedup_quartiles"],
        "dense": side("dense", dense),
        "pruned": side("pruned", quality),
    }


def _figures(point: Point, results: dict[str, Any], out: Path) -> PointFigures:
    folder = _folder(out, point) / "model"
    spec = read_spec(folder)
    return PointFigures(
        id=point.id,
        method=point.method,
        shape=point.shape,
        decoder_layers=len(spec.decoder),
        encoder_cut=spec.encoder_sparsity,
        seed=point.seed,
        speedup=results["dense"]["total_ms"] / results["pruned"]["total_ms"],
        speedup_quartiles=tuple(results["speedup_quartiles"]),
        **_size(folder),
        **results["pruned"],
    )


def _size(folder: Path) -> dict[str, Any]:
    tensors = read_header(folder / "model.safetensors").values()
    return {
        "parameters": sum(tensor.elements for tensor in tensors),
        "bytes": sum(tensor.size_bytes for tensor in tensors),
    }


def _publish(point: Point, task: Task, workload: Workload, dense: dict[str, float], out: Path, store: Store) -> str:
    """Publish a point under its id; the reference that it has now."""
    return publish(point.recipe, task, _folder(out, point), store, _results(point, task, workload, dense, out)).ref
