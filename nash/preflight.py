"""Early checks of a request: its wording, its folders and the first rows of its data.

These checks need neither torch nor transformers, which take seconds to import, so a typing error is reported at once.
The work itself checks everything again, with every row, the tokenizer and the weights.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from model_store.errors import InvalidRequestError
from model_store.find import FoundModel
from model_store.model.model import TOKENIZER, Model
from model_store.model.spec import ModelSpec
from model_store.store import Store
from model_store.version.ref import DENSE_ALIAS, check_name
from model_store.version.source import check_publishable, list_files
from nash.checkpoints.folder import check_tokenizer, is_complete, locate
from nash.data.formats import check_obtainable, is_split_folder, needs_datasets, split_path
from nash.data.model_fit import check_lengths
from nash.data.rows import read_rows
from nash.device import choose_device
from nash.errors import RequestError
from nash.measuring.metrics import check_references
from nash.precision import check_precisions
from nash.recipes.layer_selection import select_layers
from nash.recipes.recipe import SHAPE_KEYS, DataLayout, DataRecipe, FinetuneRecipe, MetricKind, PruneRecipe
from nash.recipes.sweep import Point, SweepRecipe
from nash.run.folder import check_free, check_usable
from nash.run.lineage import portable
from nash.run.trackers import check_trackers
from server.engine.capabilities import check_machine
from server.engine.interface.config import EngineConfig

FIRST_ROWS = 1000  # a file may have gigabytes; the work itself checks the remaining rows

Recipe = TypeVar("Recipe", FinetuneRecipe, PruneRecipe)


def check_rows(path: Path, layout: DataLayout, metric: MetricKind | None = None) -> None:
    """Read the first rows of a data file; data that need the package `datasets` are not read here, only looked for.

    Raises:
        RequestError: the data are missing, a row is malformed, or the metric cannot compare with a target.
    """
    if needs_datasets(path):
        check_obtainable(path)
        return
    rows = read_rows(path, layout, most=FIRST_ROWS)
    if metric is not None:
        check_references(metric, [row.targets for row in rows])


def check_files(model: Model, *, tokenizer: bool = True) -> None:
    """Check the files that a model is loaded from: its weights, and its tokenizer where the work needs one.

    Raises:
        model_store.errors.InvalidRequestError: a file is missing, or the weights file is damaged.
    """
    if tokenizer:
        check_tokenizer(model)
    model.check_weights()


def check_evaluate(
    model: str, data: Path, split: str, layout: DataLayout, metric: MetricKind, config: EngineConfig, store: Store
) -> None:
    """Refuse what `nash evaluate` would refuse.

    Raises:
        RequestError: the data or the model cannot be used.
        server.engine.errors.LoadError: the machine cannot run a model with this configuration.
        model_store.errors.ModelStoreError: the store has no such model.
    """
    check_machine(config)
    check_rows(split_path(data, split) if is_split_folder(data) else data, layout, metric)
    found = locate(model, store).model
    check_files(found)
    check_machine(config, found)


def check_bench(models: Sequence[str], config: EngineConfig, store: Store, *, record: bool = False) -> None:
    """Refuse what `nash bench` would refuse. `record`: its figures are to be kept in the store.

    Raises:
        RequestError: a model cannot be used, or is no version of the store, where figures could be kept.
        server.engine.errors.LoadError: the machine cannot run a model with this configuration.
        model_store.errors.ModelStoreError: the store has no such model.
    """
    check_machine(config)
    for model in models:
        located = locate(model, store)
        if record and located.version is None:
            raise RequestError(f"{model} is not in the store, so its figures cannot be kept there: leave out --record")
        check_files(located.model, tokenizer=False)
        check_machine(config, located.model)
    if record:
        store.check_writable()


def check_export(model: str, out: Path, store: Store) -> None:
    """Refuse what `nash export` would refuse.

    Raises:
        RequestError: `out` is taken, or the model cannot be used.
        model_store.errors.ModelStoreError: the store has no such model, or the folder is not a model directory.
    """
    check_free(out)
    found = locate(model, store)
    if is_complete(found):
        list_files(found.model.folder)
    else:
        check_files(found.model)


def check_finetune(
    recipe: FinetuneRecipe, out: Path, store: Store, name: str | None, alias: str, *, writes: bool = True
) -> FinetuneRecipe:
    """Refuse what `nash finetune` would refuse; return the recipe, length limits within the start model's positions.

    Without `writes` the store is left alone, which to find it writable would be made.

    Raises:
        RequestError: data, tokenizer, start model or `out` cannot be used.
        model_store.errors.ModelStoreError: `name` or `alias` is not legal, or the store cannot be used.
    """
    check_name(alias, "alias")
    if name is not None:
        check_name(name, "model name")
    check_trackers(recipe.report_to)
    device = choose_device(recipe.device)
    if not (out / "model").is_dir():
        check_precisions([recipe.training.precision], device)
    if recipe.model is not None:
        start = locate(recipe.model, store).model
        check_files(start)
        recipe = _within_positions(recipe, start.spec)
    elif recipe.tokenizer is not None and not (recipe.tokenizer / TOKENIZER).is_file():
        raise RequestError(f"{recipe.tokenizer} has no {TOKENIZER}: save the tokenizer there with save_pretrained")
    check_usable(out, portable(recipe), extensible=True)
    _check_data(recipe.data, recipe.metric)
    if name is not None and writes:
        store.check_writable()
    return recipe


def check_prune(recipe: PruneRecipe, out: Path, store: Store, *, writes: bool = True) -> PruneRecipe:
    """Refuse what `nash prune` would refuse; return the recipe, length limits within the dense model's positions.

    A recipe that asks for no shape and no speed gets half of the decoder's layers, which is what makes a model faster.
    Without `writes` the store is left alone.

    Raises:
        RequestError: model, data, targets or `out` cannot be used.
        model_store.errors.ModelStoreError: the store cannot be used, or has no such model.
    """
    check_words(recipe)
    device = choose_device(recipe.device)
    check_machine(_serving(recipe, device))
    if not (out / "model").is_dir():
        check_precisions(recipe.precisions, device)
    found = locate(recipe.model, store)
    check_dense(found)
    recipe = _with_shape(recipe, found.model.spec)
    asked_layers(recipe, found.model.spec)
    recipe = _within_positions(recipe, found.model.spec)
    check_apart(out, found.model.folder)
    check_usable(out, portable(recipe), extensible=True)
    _check_data(recipe.data, recipe.metric)
    if writes:
        store.check_writable()
    return recipe


def check_sweep(recipe: SweepRecipe, points: Sequence[Point], out: Path, store: Store) -> list[Point]:
    """Refuse what `nash sweep` would refuse; return the points, length limits within the dense model's positions.

    Raises:
        RequestError: model, data, the targets of any point or `out` cannot be used.
        model_store.errors.ModelStoreError: the store cannot be used, or has no such model.
    """
    shared = points[0].recipe
    device = choose_device(shared.device)
    check_machine(_serving(shared, device))
    found = locate(shared.model, store)
    check_dense(found)
    spec = found.model.spec
    check_apart(out, found.model.folder)
    for point in points:
        try:
            check_words(point.recipe)
            if not (out / "points" / point.id / "model").is_dir():
                check_precisions(point.recipe.precisions, device)
            asked_layers(point.recipe, spec)
        except (RequestError, InvalidRequestError) as error:
            raise RequestError(f"point {point.id}: {error}") from error
    points = [replace(point, recipe=_within_positions(point.recipe, spec)) for point in points]
    check_usable(out, sweep_settings(points[0].recipe))
    for point in points:
        check_usable(out / "points" / point.id, portable(point.recipe))
    _check_data(shared.data, shared.metric)
    if recipe.publish != "none":
        store.check_writable()
    return points


def _serving(recipe: PruneRecipe, device: str) -> EngineConfig:
    """How the recipe's speed is measured by a run on the device."""
    asked = recipe.workload
    served = device if asked.device is None else choose_device(asked.device)
    return EngineConfig(dtype=asked.dtype, device=served, threads=asked.threads)


def sweep_settings(shared: PruneRecipe) -> dict[str, Any]:
    """The settings shared by all points of a sweep; the sweep's folder is bound to them."""
    return {key: portable(shared)[key] for key in ("model", "name", "data", "metric", "workload")}


def check_words(recipe: PruneRecipe) -> None:
    """Refuse names, losses and trackers with which no model can be pruned.

    Raises:
        RequestError: every loss has weight 0, the alias is the dense model's, or a tracker is not installed.
        model_store.errors.InvalidRequestError: the name or the alias is not legal.
    """
    check_trackers(recipe.report_to)
    if not recipe.distillation.trains:
        raise RequestError(
            "distillation: every loss has weight 0: give task_weight or prediction_weight a value above 0"
        )
    check_name(recipe.name, "model name")
    check_name(recipe.alias, "alias")
    if recipe.alias == DENSE_ALIAS:
        raise RequestError(f"alias {DENSE_ALIAS!r} is the dense model's: give the pruned one its own, such as 'pruned'")


def asked_layers(recipe: PruneRecipe, spec: ModelSpec) -> tuple[int, ...]:
    """The decoder layers that the recipe keeps; if layers are chosen on data, a stand-in for that choice.

    Raises:
        RequestError: the decoder does not have that many layers, or not these.
    """
    pruning = recipe.pruning
    return select_layers(spec.dense_decoder_layers, pruning.decoder_layers, pruning.layer_selection)


def check_apart(out: Path, model: Path) -> None:
    """Refuse a run folder inside the model's folder: its extra files would keep the model from being published.

    Raises:
        RequestError: `out` is the model's folder or lies in it.
    """
    if out.resolve().is_relative_to(model.resolve()):
        raise RequestError(f"{out} lies in the model's own folder {model}: choose another --out")


def check_dense(found: FoundModel) -> None:
    """Refuse a model that cannot be pruned, or one from outside the store that cannot be published beside the result.

    Raises:
        RequestError: the model is pruned already.
        model_store.errors.InvalidRequestError: the model is not a publishable model directory.
    """
    if found.model.spec.compact:
        raise RequestError(f"{found.ref} is already pruned: give the dense model it came from")
    if found.version is None and is_complete(found):
        check_publishable(found.model.folder)
    elif found.version is None:  # it is completed when it is opened, and checked again then
        check_files(found.model)


def _with_shape(recipe: PruneRecipe, spec: ModelSpec) -> PruneRecipe:
    """The recipe with half of the decoder's layers, if it says nothing of what to cut."""
    pruning = recipe.pruning
    if pruning.model_fields_set & {*SHAPE_KEYS, "speedup", "gated_stacks"}:
        return recipe
    half = (spec.dense_decoder_layers + 1) // 2
    return recipe.model_copy(update={"pruning": pruning.model_copy(update={"decoder_layers": half})})


def _within_positions(recipe: Recipe, spec: ModelSpec) -> Recipe:
    """The recipe with its default length limits reduced to the positions that the model has.

    Raises:
        RequestError: an explicit limit is longer.
    """
    data = recipe.data
    limits = {key: getattr(data, key) for key in ("max_source_tokens", "max_target_tokens")}
    if spec.max_positions is not None:
        most = spec.max_positions
        data = data.model_copy(update={k: min(v, most) for k, v in limits.items() if k not in data.model_fields_set})
    check_lengths(spec, data)
    return recipe.model_copy(update={"data": data})


def _check_data(data: DataRecipe, metric: MetricKind) -> None:
    check_rows(data.train, data)
    check_rows(data.validation, data, metric)
    if data.test is not None:
        check_rows(data.test, data, metric)
