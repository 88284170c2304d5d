"""`nash prune`: from a fine-tuned dense model to a compact one in the store."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from model_store.find import FoundModel
from model_store.model.model import Model
from model_store.store import Store, StoredVersion
from model_store.version.manifest import Lineage, MeasuredOn
from model_store.version.quality import QualityRecord
from model_store.version.ref import DENSE_ALIAS
from nash import ranks
from nash.checkpoints.opening import open_model
from nash.device import choose_device
from nash.measuring.assess import RESULTS, Assessment, assess_once, check_assessable, evaluation_config
from nash.measuring.by_dtype import quality_by_dtype
from nash.measuring.figures import Figures, MeasuredModel
from nash.measuring.report import Report
from nash.measuring.speedup import SpeedPlan, TablePlan
from nash.measuring.workload import as_served
from nash.page.run_page import page_of
from nash.precision import check_precisions
from nash.preflight import check_apart
from nash.pruning.acceptance import check_accepted
from nash.pruning.plan import PLAN, plan_for, planned
from nash.pruning.run import PruneRun
from nash.pruning.stages import stale_when_extended, walk
from nash.pruning.structure_stages import STRUCTURE
from nash.pruning.task import Task, prepare
from nash.recipes.recipe import PruneRecipe
from nash.run.folder import PRECISION, RunFolder, read_json
from nash.run.lineage import lineage_of, portable
from nash.run.progress import Stage
from nash.run.trackers import trackers_of
from nash.structure.search import Structure

QUALITY = "quality_by_dtype.json"  # in the run's folder: of both models in each dtype


def prune(recipe: PruneRecipe, out: Path, store: Store, console: Console) -> Report:
    """Prune the recipe's model, publish the result as `name@alias`, and report on both.

    A model given by its path is also published, as `name@dense`, so that both can be served side by side and the
    pruned model's lineage names its parent.

    Raises:
        RequestError: model, data or targets cannot be used.
        NashError: the result is worse or slower than the recipe allows, and stays in `out` only.
    """
    device = choose_device(recipe.device)
    if not (out / "model").is_dir():
        check_precisions(recipe.precisions, device)
    with ranks.together(device), open_model(recipe.model, store) as found:
        return _prune(recipe, found, device, out, store, console)


def _prune(asked: PruneRecipe, dense: FoundModel, device: str, out: Path, store: Store, console: Console) -> Report:
    with Stage("reading the data", console):
        task = prepare(asked, dense)
        check_apart(out, task.model.folder)
    workload = as_served(asked.workload, device, task.version, store, console)
    recipe = asked.model_copy(update={"workload": workload})
    ranks.on_first(lambda: _check_assessable(recipe, task, device, out, console))
    with RunFolder(out, portable(asked), task.inputs, extensible=True) as run:
        store.check_writable()
        if run.extended:
            console.print(f"{', '.join(run.extended)}: longer than before, so training goes on", soft_wrap=True)
            stale = [*stale_when_extended(recipe, run.extended), RESULTS, QUALITY]
            ranks.on_first(lambda: run.discard(stale))
        plan = ranks.on_first(lambda: plan_for(recipe, task, run, console))
        run.bind()  # not earlier: a request for an unreachable speed must leave the folder unbound
        if plan is not None:
            run.write_json(PLAN, plan.document())
            recipe = planned(recipe, plan)
        done = read_json(out / RESULTS) is not None
        title = f"{recipe.name}@{recipe.alias}"
        with (
            page_of(out, title, console, done=done) as page,
            trackers_of(asked, run, recipe.name, title, console, done=done) as trackers,
        ):
            pruning = PruneRun(recipe, task, run, console, plan=plan, page=page, trackers=trackers)
            walk(pruning)
            found = ranks.on_first(lambda: _assess(pruning))
        return ranks.on_first(lambda: _publish_accepted(asked, pruning, found, store))


def _check_assessable(recipe: PruneRecipe, task: Task, device: str, out: Path, console: Console) -> None:
    """Raises: what `check_assessable` raises, unless the run is assessed already."""
    if read_json(out / RESULTS) is None:
        with Stage("checking that the model runs", console):
            check_assessable(task.model, task.test_rows, recipe.metric, recipe.data, device, recipe.workload)


def _assess(pruning: PruneRun) -> Assessment:
    task, recipe = pruning.task, pruning.recipe
    finished = Model.open(pruning.path / "model")
    rows, device, console = task.test_rows, pruning.device, pruning.console
    return assess_once(
        pruning.folder, task.model, finished, rows, recipe.metric, recipe.data, device, console, recipe.workload
    )


def _publish_accepted(asked: PruneRecipe, pruning: PruneRun, found: Assessment, store: Store) -> Report:
    run, task = pruning.folder, pruning.task
    check_accepted(asked, found, run.path, pruning.console)
    quality = _quality(pruning.recipe, pruning.device, task, found, run, store, pruning.console)
    return publish(asked, task, run.path, store, found, predicted=_predicted(pruning.plan, run), quality=quality)


def _quality(
    recipe: PruneRecipe, device: str, task: Task, found: Assessment, run: RunFolder, store: Store, console: Console
) -> dict[str, list[QualityRecord]]:
    """Quality records of the dense and of the pruned model in float32 and in faster dtypes."""
    known = run.read_json(QUALITY)
    if known is None:
        assert found.pruned is not None
        sides = {"dense": (task.model, found.dense), "pruned": (Model.open(run.path / "model"), found.pruned)}
        recorded = () if task.version is None else store.quality(task.version.ref)
        known = {
            name: [
                record.document()
                for record in quality_by_dtype(
                    name,
                    model,
                    task.test_rows,
                    recipe.data.scored_split,
                    recipe.metric,
                    evaluation_config(recipe.data, device),
                    figures.metrics,
                    console,
                    recorded=recorded if name == "dense" else (),
                )
            ]
            for name, (model, figures) in sides.items()
        }
        run.write_json(QUALITY, known)
    return {name: [QualityRecord.of(each) for each in documents] for name, documents in known.items()}


def publish(
    recipe: PruneRecipe,
    task: Task,
    out: Path,
    store: Store,
    found: Assessment,
    *,
    predicted: float | None = None,
    quality: Mapping[str, Sequence[QualityRecord]] | None = None,
) -> Report:
    """Publish the dense model and the one in `out/model` in the store, with their figures.

    Publishing the same content again makes no new version. `predicted` is the speed-up that was predicted for a
    requested one; `quality` holds the records of "dense" and of "pruned".
    """
    assert found.pruned is not None
    assert found.speedup is not None
    measured_on = MeasuredOn(split=recipe.data.scored_split, rows=found.n)
    dense = task.version
    if dense is None:
        published = store.publish(
            recipe.name,
            task.model.folder,
            alias=DENSE_ALIAS,
            lineage=Lineage(trained_from=task.origin),
            metrics=found.dense.metrics,
            measured_on=measured_on,
        )
        dense = store.resolve(f"{published.name}:{published.version}")
    lineage = lineage_of(recipe, dense.digest, task.inputs, read_json(out / PRECISION) or {})
    pruned = store.publish(
        recipe.name,
        out / "model",
        alias=recipe.alias,
        lineage=lineage,
        metrics=found.pruned.metrics,
        measured_on=measured_on,
        reason="prune",
    )
    stored = store.resolve(f"{pruned.name}:{pruned.version}")
    for name, side in (("dense", dense), ("pruned", stored)):
        for record in (quality or {}).get(name, ()):
            store.add_quality(side.ref, record)
    summary = stored.manifest.spec
    return Report(
        ref=f"{recipe.name}@{recipe.alias}",
        digest=pruned.digest,
        dense_ref=f"{dense.name}@{DENSE_ALIAS}" if DENSE_ALIAS in dense.aliases else dense.ref,
        n=found.n,
        workload=found.workload,
        speedup=found.speedup,
        decoder_layers=summary.decoder_layers,
        encoder_sparsity=summary.encoder_sparsity,
        dense_vocab_size=dense.manifest.spec.vocab_size,
        vocab_size=summary.vocab_size,
        asked=recipe.pruning.speedup,
        predicted=predicted,
        dense=_measured(dense, found.dense),
        pruned=_measured(stored, found.pruned),
    )


def _predicted(plan: SpeedPlan | TablePlan | None, run: RunFolder) -> float | None:
    if isinstance(plan, TablePlan):
        return plan.dense_ms / Structure.of(run.read_json(STRUCTURE)).predicted_ms
    return None if plan is None else plan.predicted


def _measured(stored: StoredVersion, figures: Figures) -> MeasuredModel:
    spec = stored.manifest.spec
    return MeasuredModel(figures=figures, parameters=spec.parameters, bytes=spec.bytes)
