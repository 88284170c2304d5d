"""`nash finetune`: train a dense model from scratch, or fine-tune one, by a recipe."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import set_seed

from model_store.find import FoundModel
from model_store.model.config import spec_of
from model_store.model.model import Model
from model_store.store import Store
from model_store.version.manifest import MeasuredOn
from model_store.version.ref import check_name
from nash import ranks
from nash.checkpoints.opening import open_model
from nash.checkpoints.proof import check_task
from nash.data.model_fit import check_lengths
from nash.data.rows import RowFile, TaskRow, read_rows
from nash.device import choose_device
from nash.finetuning.layer_dropout import LayerDropoutObjective
from nash.measuring.assess import RESULTS, Assessment, assess_once, check_assessable
from nash.measuring.figures import MeasuredModel
from nash.measuring.metrics import check_references
from nash.modeling.folders import DTYPES, load_dense, load_tokenizer, save_model
from nash.modeling.fresh import new_model
from nash.page.run_page import RunPage, page_of
from nash.precision import check_precisions, choose_precision
from nash.recipes.recipe import FinetuneRecipe
from nash.run.folder import CHECKPOINTS, PRECISION, RunFolder
from nash.run.lineage import input_digests, lineage_of, portable
from nash.run.live_log import LiveLog
from nash.run.progress import Stage
from nash.run.trackers import Trackers, trackers_of
from nash.training.phase import Phase
from nash.training.progress import TrainingProgress
from nash.training.token_cache import TOKENS, TokenCache
from nash.training.validation import TaskScore


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """The outcome of `nash finetune`. `ref` is a reference if the model was published, else its folder."""

    ref: str
    digest: str | None
    n: int
    dense: MeasuredModel

    def document(self) -> dict[str, Any]:
        """The report as one JSON object, in the form that `nash prune` prints, without a pruned model."""
        return {**asdict(self), "dense": self.dense.document(), "pruned": None, "speedup": None}


def finetune(
    recipe: FinetuneRecipe, out: Path, store: Store, console: Console, name: str | None, alias: str
) -> FinetuneReport:
    """Train, or resume training, in the run folder `out`; evaluate; publish as `name@alias` if `name` is given.

    Raises:
        RequestError: data, tokenizer or start model cannot be used.
        model_store.errors.InvalidRequestError: `name` or `alias` is not legal.
    """
    if name is not None:
        check_name(name, "model name")
    check_name(alias, "alias")
    device = choose_device(recipe.device)
    if not (out / "model").is_dir():
        check_precisions([recipe.training.precision], device)
    with ranks.together(device):
        if recipe.model is None:
            return _finetune(recipe, None, device, out, store, console, name, alias)
        with open_model(recipe.model, store) as start:
            return _finetune(recipe, start, device, out, store, console, name, alias)


def _finetune(
    recipe: FinetuneRecipe,
    start: FoundModel | None,
    device: str,
    out: Path,
    store: Store,
    console: Console,
    name: str | None,
    alias: str,
) -> FinetuneReport:
    data, folder = recipe.data, out / "model"
    with Stage("reading the data", console):
        rows, validation_rows = RowFile(data.train, data), read_rows(data.validation, data)
        test_rows = (validation_rows if data.test is None else read_rows(data.test, data))[: data.test_rows]
        check_references(recipe.metric, [row.targets for row in test_rows])
    if start is not None:
        check_lengths(start.model.spec, data)
    trained = ranks.on_first(folder.is_dir)
    if start is not None and not trained:
        check_assessable(start.model, test_rows, recipe.metric, data, device)
    inputs = input_digests(data, start, recipe.tokenizer)
    with RunFolder(out, portable(recipe), inputs, extensible=True) as run:
        if run.extended:
            console.print(f"{', '.join(run.extended)}: longer than before, so training goes on", soft_wrap=True)
            ranks.on_first(lambda: run.discard(["model", RESULTS]))
        if name is not None:
            store.check_writable()
        title = name or out.name
        with page_of(out, title, console, done=run.read_json(RESULTS) is not None) as page:
            if not trained:
                with trackers_of(recipe, run, title, title, console) as trackers:
                    _train(recipe, device, rows, validation_rows, start, inputs, run, page, trackers, console)
            found = ranks.on_first(
                lambda: assess_once(run, Model.open(folder), None, test_rows, recipe.metric, data, device, console)
            )
        return ranks.on_first(lambda: _publish(recipe, start, inputs, run, store, found, name, alias))


def _publish(
    recipe: FinetuneRecipe,
    start: FoundModel | None,
    inputs: dict[str, str],
    run: RunFolder,
    store: Store,
    found: Assessment,
    name: str | None,
    alias: str,
) -> FinetuneReport:
    folder = run.path / "model"
    ref, digest = str(folder), None
    if name is not None:
        parent = start.version.digest if start is not None and start.version is not None else None
        origin = None if start is None else start.origin
        lineage = lineage_of(recipe, parent, inputs, run.read_json(PRECISION) or {}, trained_from=origin)
        measured_on = MeasuredOn(split=recipe.data.scored_split, rows=found.n)
        published = store.publish(
            name,
            folder,
            alias=alias,
            lineage=lineage,
            metrics=found.dense.metrics,
            measured_on=measured_on,
            reason="finetune",
        )
        ref, digest = f"{name}@{alias}", published.digest
    trained = Model.open(folder)
    side = MeasuredModel(figures=found.dense, parameters=trained.parameters, bytes=trained.tensor_bytes)
    return FinetuneReport(ref=ref, digest=digest, n=found.n, dense=side)


def _train(
    recipe: FinetuneRecipe,
    device: str,
    rows: RowFile,
    validation_rows: list[TaskRow],
    start: FoundModel | None,
    inputs: dict[str, str],
    run: RunFolder,
    page: RunPage,
    trackers: Trackers,
    console: Console,
) -> None:
    tokenizer_folder = recipe.tokenizer if start is None else start.model.folder
    assert tokenizer_folder is not None  # the recipe has a model or a tokenizer
    tokenizer = load_tokenizer(tokenizer_folder)
    check_task(tokenizer_folder, tokenizer, rows, validation_rows)
    cache = TokenCache(
        folder=run.path / TOKENS,
        tokenizer=tokenizer,
        tokenizer_folder=tokenizer_folder,
        data=recipe.data,
        console=console,
    )
    pairs = cache.pairs(rows, {"data": inputs["train"]})
    validation = cache.pairs(validation_rows, {"data": inputs["validation"]})
    if pairs.cut:
        console.print(f"{pairs.cut} training texts are longer than the limits and were cut")
    set_seed(recipe.seed)
    if start is not None:
        model = load_dense(start.model)
    else:
        assert recipe.shape is not None
        limits = recipe.data.max_source_tokens, recipe.data.max_target_tokens
        model = new_model(recipe.shape, tokenizer, *limits)
    progress = TrainingProgress("training", console, page, trackers)
    checkpoints = run.path / CHECKPOINTS
    phase = Phase(
        LayerDropoutObjective(model, recipe.layer_dropout, label_smoothing=recipe.training.label_smoothing),
        pairs,
        recipe.training,
        spec=spec_of(model.config.to_dict()),
        folder=checkpoints,
        seed=recipe.seed,
        device=device,
        validation=validation,
        score=TaskScore.of(
            validation_rows, recipe, recipe.training.validation_rows, device, tokenizer_folder, checkpoints
        ),
        watcher=progress,
        live_log=LiveLog(run.path / "training_log.jsonl"),
        workers=recipe.data.workers,
    )
    run.bind()
    choice = choose_precision(recipe.training.precision, device)
    console.print(f"training on {device} in {choice.precision} ({choice.why})", soft_wrap=True)
    run.note_precision("training", choice)
    try:
        phase.run()
    finally:
        progress.close()
    if not ranks.first():
        return
    save_model(model.to("cpu"), tokenizer_folder, run.path / "model", DTYPES[recipe.save_dtype])
