"""`nash prune`: from a fine-tuned dense model to a compact one in the store.

The walk: the vocabulary, teacher and student, pruning with gates, hardening, compaction, final fine-tune, evaluation,
publication.
Every stage leaves its result in the run folder and is passed over when it is there, so a run that was interrupted
goes on where it stopped.

A vocabulary is trimmed before anything else, the teacher's too: every step is cheaper for it, and the teacher's
probabilities and answers are made of the tokens that stay.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from model_store.ref import check_name
from model_store.source import check_publishable
from model_store.spec import ModelSpec
from model_store.store import Store, StoredVersion
from nash.assess import assess
from nash.calibration import calibration_batches, closest_layers, repair
from nash.compaction import compact, shorten_decoder
from nash.data import Row, TokenizedPairs, read_rows
from nash.distillation import DistillationMaps
from nash.errors import RequestError
from nash.latency import Workload
from nash.layer_selection import block_ends, select_layers
from nash.lineage import input_digests, lineage_of
from nash.masking import GateKinds, Gates
from nash.models import (
    DTYPES,
    check_lengths,
    load_compact,
    load_dense,
    load_tokenizer,
    read_spec,
    resolve_model,
    save_model,
)
from nash.parts import parts_of, shortened
from nash.progress import TrainingProgress
from nash.pruning_training import StudentTrainer
from nash.random_model import with_vocabulary
from nash.recipe import PruneRecipe, PruningRecipe, WorkloadRecipe
from nash.report import Report, Side
from nash.run_folder import RunFolder, read_json
from nash.speedup import SpeedPlan, engine_measure, make_plan, settle
from nash.teacher_answers import with_teacher_answers
from nash.training import train, write_log
from nash.vocabulary import Coverage, plan_vocabulary, trim_vocabulary
from nash.workload import workload_of

DENSE_ALIAS = "dense"
# In the run's folder: the shape for an asked speed, the decoder layers that "auto" chose, the encoder sparsity after a
# look at what the gates decided, and what was kept of the vocabulary.
PLAN, LAYERS, SETTLED, VOCABULARY = "plan.json", "layers.json", "settled.json", "vocabulary.json"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a run works on: the dense model, what is kept of its decoder, and the data."""

    inputs: dict[str, str]  # digests of what is read
    folder: Path  # the dense model's files
    version: StoredVersion | None  # the dense model in the store; None while it is a folder outside
    spec: ModelSpec
    tokenizer: PreTrainedTokenizerBase
    kept_layers: tuple[int, ...]
    train_rows: list[Row]
    validation_rows: list[Row]
    test_rows: list[Row]


def prune(recipe: PruneRecipe, out: Path, store: Store, console: Console) -> Report:
    """Prune the recipe's model, publish the result as `name@alias`, and report on both.

    A model given by its path is published as well, as `name@dense`, so that the two can be served side by side and
    the pruned one's lineage names its parent.

    Raises:
        RequestError: model, data or targets cannot be used.
    """
    task, asked = prepare(recipe, store), recipe
    plan = None if recipe.pruning.speedup is None else _plan(recipe, task, recipe.pruning.speedup, out, console)
    if plan is not None:
        recipe = _planned(recipe, plan)
    with RunFolder(out, asked.model_dump(mode="json"), task.inputs) as run:
        if plan is not None:
            run.write_json(PLAN, plan.document())
        walk(recipe, task, run, console, plan)
        results = run.read_json("results.json")
        if results is None:
            folders = {"dense": task.folder, "pruned": out / "model"}
            results = assess(folders, task.test_rows, recipe.metric, recipe.data, console, recipe.workload)
            run.write_json("results.json", results)
        return publish(asked, task, out, store, results, plan)


def prepare(recipe: PruneRecipe, store: Store) -> Task:
    """Read what a run works on, and check all of it before there is any training.

    Raises:
        RequestError: model, data or targets cannot be used.
    """
    data = recipe.data
    train_rows, validation_rows = read_rows(data.train, data), read_rows(data.validation, data)
    test_rows = validation_rows if data.test is None else read_rows(data.test, data)
    model = resolve_model(recipe.model, store)
    spec = read_spec(model.folder)
    if spec.compact:
        raise RequestError(f"{recipe.model} is already pruned: give the dense model it came from")
    check_lengths(spec, data)
    if model.version is None:
        check_publishable(model.folder)  # after hours of training it would be late to learn that it is not
    task = Task(
        inputs=input_digests(data, model),
        folder=model.folder,
        version=model.version,
        spec=spec,
        tokenizer=load_tokenizer(model.folder),
        kept_layers=(),
        train_rows=train_rows,
        validation_rows=validation_rows,
        test_rows=test_rows[: data.test_rows],
    )
    return aimed(recipe, task)


def aimed(recipe: PruneRecipe, task: Task) -> Task:
    """A task with a recipe's targets: runs that share model and data read them once.

    Raises:
        RequestError: the targets cannot be used.
    """
    if not recipe.distillation.trains:
        raise RequestError("distillation: every loss has weight 0: leave task_weight or prediction_weight on")
    check_name(recipe.name, "model name")
    check_name(recipe.alias, "alias")
    if recipe.alias == DENSE_ALIAS:
        raise RequestError(f"alias {DENSE_ALIAS!r} is the dense model's: give the pruned one another, such as 'pruned'")
    if recipe.pruning.speedup is None:
        _check_reachable(recipe.pruning, task.spec)
    return replace(task, kept_layers=_asked_layers(recipe.pruning, task.spec))


def walk(recipe: PruneRecipe, task: Task, run: RunFolder, console: Console, plan: SpeedPlan | None = None) -> None:
    """Train and prune until the run's folder has the finished `model`; stages that are done are passed over."""
    if (run.path / "model").is_dir():
        return
    if recipe.pruning.trim_vocab:
        task = _trimmed(task, run, console)
    task = _chosen(recipe, task, run, console)
    if not (run.path / "compact").is_dir():
        _prune_phase(recipe, task, plan, run, console)
    _final_phase(recipe, task, run.path, console)


def _check_reachable(pruning: PruningRecipe, spec: ModelSpec) -> None:
    """Without this, hardening would cut what has no gate, in the order of the layers."""
    reachable = _gate_kinds(pruning).reach(spec)
    if pruning.encoder_sparsity > reachable:
        raise RequestError(
            f"pruning.encoder_sparsity {pruning.encoder_sparsity} is out of reach: gate_heads, gate_units and "
            f"gate_sublayers let no more than {reachable:.2f} of the prunable weights be cut"
        )


def _gate_kinds(pruning: PruningRecipe) -> GateKinds:
    return GateKinds(
        heads=pruning.gate_heads,
        units=pruning.gate_units,
        sublayers=pruning.gate_sublayers,
        stacks=pruning.gated_stacks,
    )


def _plan(recipe: PruneRecipe, task: Task, speedup: float, out: Path, console: Console) -> SpeedPlan:
    """The shape for the asked speed: the one that the run in `out` has, or a new one by measurements."""
    known = read_json(out / PLAN)
    if known is not None:
        return SpeedPlan.of(known)
    workload = workload_of(recipe.workload, recipe.data, task.train_rows, task.tokenizer)
    console.print(f"looking for a shape that is {speedup:g} times as fast: {workload}")
    measure = engine_measure(task.folder, workload)
    kept = len(plan_vocabulary(task.folder, _texts(task.train_rows)).kept) if recipe.pruning.trim_vocab else None
    reach = _gate_kinds(recipe.pruning).reach(task.spec)
    plan = make_plan(speedup, task.spec, workload, measure, most_sparsity=reach, vocabulary=kept)
    console.print(f"pruning to {plan}", soft_wrap=True)
    return plan


def _planned(recipe: PruneRecipe, plan: SpeedPlan) -> PruneRecipe:
    """The recipe with the plan's shape, as if it had been asked for."""
    shape = {"decoder_layers": plan.decoder_layers, "encoder_sparsity": plan.encoder_sparsity}
    workload = WorkloadRecipe(**asdict(plan.workload))
    return recipe.model_copy(update={"pruning": recipe.pruning.model_copy(update=shape), "workload": workload})


def _trimmed(task: Task, run: RunFolder, console: Console) -> Task:
    """The task with the dense model that has the vocabulary of the training rows."""
    folder, report = run.path / "trimmed", run.read_json(VOCABULARY)
    if report is None or not folder.is_dir():
        held_out = {"validation": _texts(task.validation_rows), "test": _texts(task.test_rows)}
        report = trim_vocabulary(task.folder, folder, _texts(task.train_rows), held_out)
        run.write_json(VOCABULARY, report)
    console.print(f"vocabulary: {report['kept']} of {report['dense']} tokens are kept")
    for split, coverage in report["coverage"].items():
        console.print(f"{split}: {Coverage(**coverage)}", soft_wrap=True)
    return replace(task, folder=folder, spec=read_spec(folder), tokenizer=load_tokenizer(folder))


def _texts(rows: list[Row]) -> list[str]:
    return [text for row in rows for text in (row.source, *row.targets)]


def _asked_layers(pruning: PruningRecipe, spec: ModelSpec) -> tuple[int, ...]:
    """The decoder layers that the recipe keeps, unless they are to be chosen by a look at data."""
    return select_layers(spec.dense_decoder_layers, pruning.decoder_layers, pruning.layer_selection)


def _chosen(recipe: PruneRecipe, task: Task, run: RunFolder, console: Console) -> Task:
    """The task with the decoder layers that stay, and with the teacher's answers where these are to be learnt."""
    kept, keep = _asked_layers(recipe.pruning, task.spec), recipe.pruning.decoder_layers
    if recipe.pruning.layer_selection == "auto" and isinstance(keep, int):
        known = run.read_json(LAYERS)
        if known is None:
            console.print(f"looking for the {keep} decoder layers that stay closest to all")
            known = closest_layers(load_dense(task.folder), keep, _calibration(recipe, task))
            run.write_json(LAYERS, known)
        kept = tuple(known)
    rows = task.train_rows
    if recipe.distillation.sequence_level:
        rows = with_teacher_answers(rows, task.folder, recipe.data, run.path, console)
    return replace(task, kept_layers=kept, train_rows=rows)


def _calibration(recipe: PruneRecipe, task: Task) -> list[dict[str, Tensor]]:
    pairs = TokenizedPairs.under(recipe.data, task.train_rows, task.tokenizer)
    return calibration_batches(pairs, task.spec.pad_id, recipe.seed)


def _prune_phase(recipe: PruneRecipe, task: Task, plan: SpeedPlan | None, run: RunFolder, console: Console) -> None:
    """Train the student with gates, harden them, and write the compact model they leave to the run's `compact`."""
    set_seed(recipe.seed)
    teacher = load_dense(task.folder)
    student = shorten_decoder(teacher, task.kept_layers)
    student.gates = Gates(shortened(task.spec, task.kept_layers), _gate_kinds(recipe.pruning))
    student.maps = DistillationMaps(task.spec.d_model, len(task.kept_layers))
    if recipe.pruning.encoder_sparsity:
        _train(recipe, task, student, teacher, run.path, console, pruning=recipe.pruning)
    student.to("cpu")
    gates = student.gates
    del student.gates, student.maps

    def cut(sparsity: float) -> PreTrainedModel:
        return compact(student, task.spec, task.kept_layers, gates.harden(sparsity))

    sparsity = recipe.pruning.encoder_sparsity
    if plan is not None:
        sparsity = run.read_json(SETTLED)
        if sparsity is None:
            sparsity = settle(
                plan,
                with_vocabulary(task.spec, task.spec.dense_vocab_size),
                lambda sparsity: ModelSpec.from_config(cut(sparsity).config.to_dict()),
                engine_measure(task.folder, plan.workload),
                most_sparsity=_gate_kinds(recipe.pruning).reach(task.spec),
            )
            run.write_json(SETTLED, sparsity)
    compacted = cut(sparsity)
    if recipe.pruning.repair and sparsity:
        parts = parts_of(shortened(task.spec, task.kept_layers))
        repair(compacted, student, parts, gates.expected(), _calibration(recipe, task))
    save_model(compacted, task.folder, run.path / "compact", torch.float32)


def _final_phase(recipe: PruneRecipe, task: Task, out: Path, console: Console) -> None:
    """Fine-tune the compact model with its teacher and write it to `out/model`."""
    set_seed(recipe.seed)
    teacher = load_dense(task.folder)
    student = load_compact(out / "compact")
    if recipe.final_training.epochs:
        student.maps = DistillationMaps(task.spec.d_model, len(task.kept_layers))
        _train(recipe, task, student, teacher, out, console, pruning=None)
        del student.maps
    save_model(student.to("cpu"), task.folder, out / "model", DTYPES[recipe.save_dtype])


def _train(
    recipe: PruneRecipe,
    task: Task,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    out: Path,
    console: Console,
    *,
    pruning: PruningRecipe | None,
) -> None:
    phase = "final" if pruning is None else "prune"
    data = recipe.data
    pairs = TokenizedPairs.under(data, task.train_rows, task.tokenizer)
    if pairs.cut:
        console.print(f"{pairs.cut} training texts are longer than the limits and were cut")
    progress = TrainingProgress(phase, console)
    trainer = StudentTrainer(
        student,
        teacher,
        pairs,
        recipe.final_training if pruning is None else recipe.prune_training,
        recipe.distillation,
        block_ends=block_ends(task.kept_layers, task.spec.dense_decoder_layers),
        pruning=pruning,
        output_dir=out / "checkpoints" / phase,
        seed=recipe.seed,
        validation=TokenizedPairs.under(data, task.validation_rows, task.tokenizer),
        callbacks=[progress],
    )
    try:
        log = train(trainer)
    finally:
        progress.close()
    write_log(out / f"{phase}_log.jsonl", log)


def publish(
    recipe: PruneRecipe, task: Task, out: Path, store: Store, results: dict[str, Any], plan: SpeedPlan | None = None
) -> Report:
    """Put the dense model and the one in `out/model` into the store, with results as `assess` gives them.

    Publishing the same content again makes no new version.
    """
    dense = task.version
    if dense is None:
        metrics = results["dense"]["metrics"]
        published = store.publish(recipe.name, task.folder, alias=DENSE_ALIAS, metrics=metrics)
        dense = store.resolve(f"{published.name}:{published.version}")
    lineage = lineage_of(recipe, parent=dense.digest)
    pruned = store.publish(
        recipe.name, out / "model", alias=recipe.alias, lineage=lineage, metrics=results["pruned"]["metrics"]
    )
    stored = store.resolve(f"{pruned.name}:{pruned.version}")
    summary = stored.manifest.spec
    return Report(
        ref=f"{recipe.name}@{recipe.alias}",
        digest=pruned.digest,
        dense_ref=f"{dense.name}@{DENSE_ALIAS}" if DENSE_ALIAS in dense.aliases else dense.ref,
        n=results["n"],
        workload=Workload(**results["workload"]),
        speedup_quartiles=results["speedup_quartiles"],
        decoder_layers=summary.decoder_layers,
        encoder_sparsity=summary.encoder_sparsity,
        dense_vocab_size=dense.manifest.spec.vocab_size,
        vocab_size=summary.vocab_size,
        asked=None if plan is None else plan.asked,
        predicted=None if plan is None else plan.predicted,
        dense=Side.of(dense, results["dense"]),
        pruned=Side.of(stored, results["pruned"]),
    )
