"""`nash sweep`: prune one model to many shapes and draw the frontier of quality and speed.

Every point has its own run folder and is pruned as by `nash prune`. Finished work is kept: called again, a sweep skips
finished points, resumes the one that was interrupted, and starts those that were added to its recipe since.

The validation split decides what is on the frontier, best and published. The test split is scored once, at the end: a
figure that chose its own model would be too good.
"""

import dataclasses
import gc
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console

from model_store.errors import InvalidRequestError
from model_store.find import FoundModel
from model_store.model.model import Model
from model_store.store import Store
from nash import ranks
from nash.checkpoints.opening import open_model
from nash.data.rows import TaskRow
from nash.device import choose_device
from nash.errors import DiskFullError, NashError, RequestError
from nash.measuring.assess import Assessment, evaluation_config
from nash.measuring.evaluate import predict
from nash.measuring.figures import Figures, Latency, MeasuredModel
from nash.measuring.latency import Workload, check_workload
from nash.measuring.metrics import METRICS
from nash.measuring.significance import paired_difference
from nash.measuring.speedup import SpeedPlan, TablePlan
from nash.measuring.workload import as_served, on_device, workload_of
from nash.precision import check_precisions
from nash.preflight import check_apart, sweep_settings
from nash.pruning.plan import PLAN, plan_for, planned
from nash.pruning.prune import publish
from nash.pruning.run import PruneRun
from nash.pruning.stages import walk
from nash.pruning.task import Task, check_targets, prepare
from nash.recipes.recipe import PruneRecipe, WorkloadRecipe
from nash.recipes.sweep import CONTROL, Point, Shape, SweepRecipe
from nash.run.disk import full_disk_named
from nash.run.folder import RunFolder, read_json
from nash.run.lineage import portable
from nash.run.progress import Stage, duration
from nash.run.trackers import trackers_of
from nash.sweep.frontier import grouped
from nash.sweep.latency import SideBySide, measure_block
from nash.sweep.page import write_report
from nash.sweep.report import Compared, Failure, PointFigures, SweepReport
from server.engine.errors import EngineError

# In a point's folder: its figures on the validation rows, written when it is trained; on the test rows, and its speed,
# both written once all points are trained. The sweep's own folder has the first two of the dense model.
VALIDATION, TEST, LATENCY = "validation.json", "test.json", "latency.json"
VALIDATION_ANSWERS, TEST_ANSWERS = "validation_answers.json", "test_answers.json"  # texts, in the rows' order
# In the sweep's folder: the engine's dtype for all points, and the device that it is measured on.
DTYPE, DEVICE = "dtype.json", "device.json"
_BLOCK = 6  # points measured in turn beside the dense model, all of them in memory at once


def sweep(
    recipe: SweepRecipe,
    points: Sequence[Point],
    out: Path,
    store: Store,
    console: Console,
    *,
    remeasure: bool = False,
) -> SweepReport:
    """Train the points that are not trained yet, measure their speed side by side, and publish the requested ones.

    Speed is measured once, unless `remeasure` asks to measure all of it again.

    A point that fails appears in the report with its error; the other points are not affected.

    Raises:
        RequestError: model, data, or the targets of any point cannot be used; nothing has been trained.
        DiskFullError: the disk is full, so the other points would fail as well.
        NashError: every point failed.
    """
    if ranks.count() > 1:
        raise RequestError(
            "nash sweep runs in one process, because it measures speed between trainings: use nash prune with several"
        )
    shared = points[0].recipe
    device = choose_device(shared.device)
    for point in points:
        if not _done(out, point):
            check_precisions(point.recipe.precisions, device)
    with open_model(shared.model, store) as dense:
        return _sweep(recipe, points, dense, device, out, store, console, remeasure=remeasure)


def _sweep(
    recipe: SweepRecipe,
    points: Sequence[Point],
    dense: FoundModel,
    device: str,
    out: Path,
    store: Store,
    console: Console,
    *,
    remeasure: bool,
) -> SweepReport:
    shared = points[0].recipe
    with Stage("reading the data", console):
        task = prepare(shared, dense)
    check_apart(out, task.model.folder)
    for point in points:
        _check_targets(point, task)
    with RunFolder(out, sweep_settings(shared), task.inputs) as run:
        run.bind()
        for point in points:
            if _folder(out, point).is_dir():
                with _run_folder(out, point, task):
                    pass  # a folder with other settings is refused now, before other points are trained
        if recipe.publish != "none":
            store.check_writable()
        dtype = run.read_json(DTYPE)  # points measured later must be comparable
        served = on_device(shared.workload, run.read_json(DEVICE) or device)
        if dtype is None:
            dtype = as_served(served, device, task.version, store, console).dtype
            run.write_json(DTYPE, dtype)
        run.write_json(DEVICE, served.device)
        asked = served.model_copy(update={"dtype": dtype})
        workload = workload_of(asked, shared.data, task.test_rows, task.tokenizer)
        check_workload(task.model, workload)
        _score(VALIDATION, task.validation_rows, task.model, shared, run, "the dense model", console)
        failures = _train_points(points, asked, task, run, console)
        trained = [point for point in points if _done(out, point)]
        if not trained:
            raise NashError(f"every point failed, the first one with: {failures[0].error}")
        waiting = [p for p in trained if remeasure or not (_folder(out, p) / LATENCY).is_file()]
        _measure(waiting, task, workload, out, console)
        _score(TEST, task.test_rows, task.model, shared, run, "the dense model", console)
        for point in trained:
            with _run_folder(out, point, task) as folder:
                _score(TEST, task.test_rows, Model.open(folder.path / "model"), shared, folder, point.id, console)
        report = _report(recipe, trained, task, workload, failures, out)
        chosen = {"none": [], "frontier": report.on_frontier, "all": [p.id for p in report.points]}[recipe.publish]
        refs = {p.id: _publish(p, task, workload, out, store) for p in trained if p.id in chosen}
        report = dataclasses.replace(
            report, points=[dataclasses.replace(figures, ref=refs.get(figures.id)) for figures in report.points]
        )
        write_report(report, out)
        return report


def _check_targets(point: Point, task: Task) -> None:
    try:
        check_targets(point.recipe, task)
    except (RequestError, InvalidRequestError) as error:
        raise RequestError(f"point {point.id}: {error}") from error


def _folder(out: Path, point: Point) -> Path:
    return out / "points" / point.id


def _run_folder(out: Path, point: Point, task: Task) -> RunFolder:
    return RunFolder(_folder(out, point), portable(point.recipe), task.inputs)


def _done(out: Path, point: Point) -> bool:
    folder = _folder(out, point)
    return (folder / VALIDATION).is_file() and (folder / "model").is_dir()


def _score(
    file: str,
    rows: Sequence[TaskRow],
    model: Model,
    recipe: PruneRecipe,
    run: RunFolder,
    name: str,
    console: Console,
) -> None:
    """Write a model's metrics on the rows, and its answers, into the run's folder, unless they are there."""
    if (run.path / file).is_file():
        return
    title = f"evaluating {name} on the {Path(file).stem} rows"
    config = evaluation_config(recipe.data, choose_device(recipe.device))
    with Stage(title, console, len(rows), unit="rows") as stage:
        answers = predict(model, [row.source for row in rows], config, stage.update)
    run.write_json({VALIDATION: VALIDATION_ANSWERS, TEST: TEST_ANSWERS}[file], answers)
    run.write_json(file, METRICS[recipe.metric](answers, [row.targets for row in rows]))


def _train_points(
    points: Sequence[Point], workload: WorkloadRecipe, task: Task, sweep_run: RunFolder, console: Console
) -> list[Failure]:
    """Take every point that is not done to its end."""
    out = sweep_run.path
    waiting = [point for point in points if not _done(out, point)]
    if len(waiting) < len(points):
        console.print(f"{len(points) - len(waiting)} of {len(points)} points are already done")
    failures: list[Failure] = []
    taken_s: list[float] = []
    for i, point in enumerate(waiting):
        left = f", about {duration(fmean(taken_s) * (len(waiting) - i))} left" if taken_s else ""
        console.print(f"point {len(points) - len(waiting) + i + 1} of {len(points)}, {point.id}{left}", soft_wrap=True)
        started_s = time.monotonic()
        try:
            _train_point(point, workload, task, sweep_run, console)
        except DiskFullError:
            raise
        except Exception as error:  # noqa: BLE001  whatever the error, go on with the remaining points
            foreseen = isinstance(error, NashError | EngineError)
            named = str(error) if foreseen else f"{type(error).__name__}: {error}"
            console.print(f"point {point.id} failed: {named}", soft_wrap=True)
            if not foreseen:
                console.print_exception()
            failures.append(Failure(id=point.id, error=named))
        except KeyboardInterrupt:
            console.print(f"interrupted: the same command continues with {point.id}", soft_wrap=True)
            raise
        else:
            taken_s.append(time.monotonic() - started_s)
        gc.collect()  # a module may hold itself in cycles, and with it a whole model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return failures


def _train_point(point: Point, workload: WorkloadRecipe, task: Task, sweep_run: RunFolder, console: Console) -> None:
    out, room = sweep_run.path, task.model.tensor_bytes
    with _run_folder(out, point, task) as run, full_disk_named(out, room):
        run.bind()
        recipe = point.recipe.model_copy(update={"workload": workload})
        plan = _plan(recipe, task, run, sweep_run, console)
        if plan is not None:
            recipe = planned(recipe, plan)
        with trackers_of(recipe, run, recipe.name, point.id, console) as trackers:
            walk(PruneRun(recipe, task, run, console, plan=plan, shared=out, trackers=trackers))
        model = Model.open(run.path / "model")
        _score(VALIDATION, task.validation_rows, model, recipe, run, point.id, console)
        # A sweep has many points, and checkpoints take most of the space of each.
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)


def _plan(
    recipe: PruneRecipe, task: Task, run: RunFolder, sweep_run: RunFolder, console: Console
) -> SpeedPlan | TablePlan | None:
    """The plan for a point's speed; points that ask for the same share it."""
    pruning = recipe.pruning
    shared = f"plan-{pruning.structure}-{pruning.speedup}{'-trimmed' if pruning.trim_vocab else ''}.json"
    known = sweep_run.read_json(shared)
    if known is not None:
        run.write_json(PLAN, known)
    plan = plan_for(recipe, task, run, console)
    if plan is not None:
        for folder, name in ((run, PLAN), (sweep_run, shared)):
            folder.write_json(name, plan.document())
    return plan


def _measure(points: Sequence[Point], task: Task, workload: Workload, out: Path, console: Console) -> None:
    """Measure the latencies of the points, block by block.

    This comes after all training, side by side, so that other load on the machine affects all points alike. Points that
    are added later are measured later, but also beside the dense model: a speed-up is always within one block.
    """
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK]
        title = (
            f"measuring latency of points {start + 1} to {start + len(block)} of {len(points)} beside the dense "
            f"model's, {workload}"
        )
        models = [Model.open(_folder(out, point) / "model") for point in block]
        with Stage(title, console, unit="turns", steady=True) as stage:
            measured = measure_block(task.model, models, workload, stage.update)
        for point, figures in zip(block, measured, strict=True):
            with _run_folder(out, point, task) as run:
                run.write_json(LATENCY, figures.document())


def _report(
    recipe: SweepRecipe,
    points: Sequence[Point],
    task: Task,
    workload: Workload,
    failures: Sequence[Failure],
    out: Path,
) -> SweepReport:
    latencies = [_latency(point, out) for point in points]
    means = {
        field.name: fmean(getattr(side.dense, field.name) for side in latencies)
        for field in dataclasses.fields(Latency)
    }
    return SweepReport(
        name=points[0].recipe.name,
        metric=points[0].recipe.metric,
        n=len(task.test_rows),
        workload=workload,
        quality_kept=recipe.quality_kept,
        dense=_measured(task.model, read_json(out / TEST), Latency(**means)),
        dense_validation=read_json(out / VALIDATION),
        dense_layers=len(task.spec.decoder),
        points=[_figures(point, side, out) for point, side in zip(points, latencies, strict=True)],
        compared=_compared(points, task, out),
        failures=list(failures),
        busyness=max(side.busyness for side in latencies),
    )


def _compared(points: Sequence[Point], task: Task, out: Path) -> dict[tuple[str, Shape], Compared]:
    """Every shape beside the dense model and the control, on the test rows."""
    metric, references = points[0].recipe.metric, [row.targets for row in task.test_rows]
    shapes = grouped(((point.method, point.shape), read_json(_folder(out, point) / TEST_ANSWERS)) for point in points)
    dense = [read_json(out / TEST_ANSWERS)]
    controls = [answers for (method, _), seeds in shapes.items() if method == CONTROL for answers in seeds]
    return {
        key: Compared(
            dense=paired_difference(metric, answers, dense, references),
            control=paired_difference(metric, answers, controls, references)
            if controls and key[0] != CONTROL
            else None,
        )
        for key, answers in shapes.items()
    }


def _figures(point: Point, latency: SideBySide, out: Path) -> PointFigures:
    model = Model.open(_folder(out, point) / "model")
    return PointFigures(
        id=point.id,
        method=point.method,
        shape=point.shape,
        decoder_layers=len(model.spec.decoder),
        encoder_cut=model.spec.encoder_sparsity,
        seed=point.seed,
        measured=_measured(model, read_json(_folder(out, point) / TEST), latency.pruned),
        validation=read_json(_folder(out, point) / VALIDATION),
        speedup=latency.speedup,
    )


def _latency(point: Point, out: Path) -> SideBySide:
    return SideBySide.of(read_json(_folder(out, point) / LATENCY))


def _measured(model: Model, metrics: dict[str, float], latency: Latency) -> MeasuredModel:
    figures = Figures(metrics=metrics, latency=latency)
    return MeasuredModel(figures=figures, parameters=model.parameters, bytes=model.tensor_bytes)


def _publish(point: Point, task: Task, workload: Workload, out: Path, store: Store) -> str:
    """Publish a point under its id and return its reference."""
    latency, metrics = _latency(point, out), read_json(_folder(out, point) / TEST)
    found = Assessment(
        n=len(task.test_rows),
        workload=workload,
        dense=Figures(metrics=read_json(out / TEST), latency=latency.dense),
        pruned=Figures(metrics=metrics, latency=latency.pruned),
        speedup=latency.speedup,
    )
    return publish(point.recipe, task, _folder(out, point), store, found).ref
