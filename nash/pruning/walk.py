"""The walk from a dense model to a finished compact one, in one run folder.

The vocabulary, the decoder layers, the teacher's answers, pruning with gates, hardening, compaction, final fine-tune,
and where asked for the same weights in four bits.
Every stage leaves its result in the folder and is passed over when it is there, so a run that was interrupted goes on
where it stopped.

A vocabulary is trimmed before anything else, the teacher's too: every step is cheaper for it, and the teacher's
probabilities and answers are made of the tokens that stay.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel, set_seed

from model_store.model.config import layout_of, spec_of
from model_store.model.model import Model
from model_store.model.spec import shortened
from nash.data.examples import TokenizedPairs
from nash.int4.calibration import calibrate
from nash.measuring.random_model import with_vocabulary
from nash.measuring.speedup import SpeedPlan, engine_measure, settle
from nash.modeling.folders import DTYPES, load_compact, load_dense, load_tokenizer, save_model
from nash.precision import choose_precision
from nash.preflight import asked_layers
from nash.pruning.calibration import calibration_batches, closest_layers, repair
from nash.pruning.compaction import compact, shorten_decoder
from nash.pruning.distillation import DistillationMaps
from nash.pruning.masking import Gates
from nash.pruning.student_training import StudentTrainer
from nash.pruning.task import Task, gate_kinds, texts_of
from nash.recipes.layer_selection import block_ends
from nash.recipes.recipe import PruneRecipe, PruningRecipe
from nash.run.folder import RunFolder
from nash.run.progress import Stage
from nash.training.phase import train, write_log
from nash.training.phase_progress import TrainingProgress
from nash.training.teacher_answers import with_teacher_answers
from nash.vocabulary.trimming import Coverage, trim_vocabulary

# In the run's folder: the decoder layers that "auto" chose, the encoder sparsity after a look at what the gates
# decided, and what was kept of the vocabulary.
LAYERS, SETTLED, VOCABULARY = "layers.json", "settled.json", "vocabulary.json"


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """What both phases train on, as tokens."""

    train: TokenizedPairs
    validation: TokenizedPairs


def walk(
    recipe: PruneRecipe,
    task: Task,
    run: RunFolder,
    console: Console,
    plan: SpeedPlan | None = None,
    *,
    answers: Path | None = None,
) -> None:
    """Train and prune until the run's folder has the finished `model`; stages that are done are passed over.

    `answers` is the folder for the teacher's, where runs of the same model and data share them; else the run's own.
    """
    if not (run.path / "model").is_dir():
        _make_model(recipe, task, run, console, plan, answers)
    model = Model.open(run.path / "model")
    if recipe.quantization.int4 and not model.calibrated:
        limits = {key: getattr(recipe.data, key) for key in ("max_source_tokens", "max_target_tokens")}
        calibrate(model, task.train_rows, console, seed=recipe.seed, **limits)


def _make_model(
    recipe: PruneRecipe,
    task: Task,
    run: RunFolder,
    console: Console,
    plan: SpeedPlan | None,
    answers: Path | None,
) -> None:
    if recipe.pruning.trim_vocab:
        task = _trimmed(task, run, console)
        answers = None  # the teacher is this run's own
    task = _chosen(recipe, task, run, answers or run.path, console)
    with Stage("splitting the texts into tokens", console):
        train_pairs = TokenizedPairs.under(recipe.data, task.train_rows, task.tokenizer)
        validation_pairs = TokenizedPairs.under(recipe.data, task.validation_rows, task.tokenizer)
    if train_pairs.cut:
        console.print(f"{train_pairs.cut} training texts are longer than the limits and were cut")
    texts = _Texts(train=train_pairs, validation=validation_pairs)
    if not (run.path / "compact").is_dir():
        _prune_phase(recipe, task, texts, plan, run, console)
    _final_phase(recipe, task, texts, run, console)


def _trimmed(task: Task, run: RunFolder, console: Console) -> Task:
    """The task with the dense model that has the vocabulary of the training rows."""
    folder, report = run.path / "trimmed", run.read_json(VOCABULARY)
    if report is None or not folder.is_dir():
        held_out = {"validation": texts_of(task.validation_rows), "test": texts_of(task.test_rows)}
        with Stage("trimming the vocabulary", console):
            report = trim_vocabulary(task.model, folder, texts_of(task.train_rows), held_out)
        run.write_json(VOCABULARY, report)
    console.print(f"vocabulary: {report['kept']} of {report['dense']} tokens are kept")
    for split, coverage in report["coverage"].items():
        console.print(f"{split}: {Coverage(**coverage)}", soft_wrap=True)
    return replace(task, model=Model.open(folder), tokenizer=load_tokenizer(folder))


def _chosen(recipe: PruneRecipe, task: Task, run: RunFolder, answers: Path, console: Console) -> Task:
    """The task with the decoder layers that stay, and with the teacher's answers where these are to be learnt."""
    kept, keep = asked_layers(recipe, task.spec), recipe.pruning.decoder_layers
    if recipe.pruning.layer_selection == "auto" and isinstance(keep, int):
        known = run.read_json(LAYERS)
        if known is None:
            with Stage(f"looking for the {keep} decoder layers that stay closest to all", console):
                pairs = TokenizedPairs.under(recipe.data, task.train_rows, task.tokenizer)
                batches = calibration_batches(pairs, task.spec.pad_id, recipe.seed)
                known = closest_layers(load_dense(task.model), keep, batches)
            run.write_json(LAYERS, known)
        kept = tuple(known)
    rows = task.train_rows
    if recipe.distillation.sequence_level:
        rows = with_teacher_answers(rows, task.model, recipe.data, answers, console)
    return replace(task, kept_layers=kept, train_rows=rows)


def _prune_phase(
    recipe: PruneRecipe, task: Task, texts: _Texts, plan: SpeedPlan | None, run: RunFolder, console: Console
) -> None:
    """Train the student with gates, harden them, and write the compact model they leave to the run's `compact`."""
    set_seed(recipe.seed)
    teacher = load_dense(task.model)
    student = shorten_decoder(teacher, task.kept_layers)
    student.gates = Gates(shortened(task.spec, task.kept_layers), gate_kinds(recipe.pruning))
    student.maps = DistillationMaps(task.spec.d_model, len(task.kept_layers))
    if recipe.pruning.encoder_sparsity:
        _train(recipe, task, texts, student, teacher, run, console, pruning=recipe.pruning)
    student.to("cpu")
    gates = student.gates
    del student.gates, student.maps

    def cut(sparsity: float) -> PreTrainedModel:
        return compact(student, task.spec, task.kept_layers, gates.harden(sparsity))

    sparsity = recipe.pruning.encoder_sparsity
    if plan is not None:
        sparsity = run.read_json(SETTLED)
        if sparsity is None:
            with Stage("measuring the speed of what the gates left", console, steady=True):
                sparsity = settle(
                    plan,
                    with_vocabulary(task.spec, task.spec.dense_vocab_size),
                    lambda sparsity: spec_of(cut(sparsity).config.to_dict()),
                    engine_measure(task.model, plan.workload),
                    most_sparsity=gate_kinds(recipe.pruning).reach(task.spec),
                )
            run.write_json(SETTLED, sparsity)
    compacted = cut(sparsity)
    if recipe.pruning.repair and sparsity:
        sublayers = layout_of(shortened(task.spec, task.kept_layers)).sublayers()
        with Stage("refitting what feeds on cut parts", console):
            batches = calibration_batches(texts.train, task.spec.pad_id, recipe.seed)
            repair(compacted, student, sublayers, gates.expected(), batches)
    save_model(compacted, task.model.folder, run.path / "compact", torch.float32)


def _final_phase(recipe: PruneRecipe, task: Task, texts: _Texts, run: RunFolder, console: Console) -> None:
    """Fine-tune the compact model with its teacher and write it to the run's `model`."""
    set_seed(recipe.seed)
    teacher = load_dense(task.model)
    student = load_compact(Model.open(run.path / "compact"))
    if recipe.final_training.epochs:
        student.maps = DistillationMaps(task.spec.d_model, len(task.kept_layers))
        _train(recipe, task, texts, student, teacher, run, console, pruning=None)
        del student.maps
    save_model(student.to("cpu"), task.model.folder, run.path / "model", DTYPES[recipe.save_dtype])


def _train(
    recipe: PruneRecipe,
    task: Task,
    texts: _Texts,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    run: RunFolder,
    console: Console,
    *,
    pruning: PruningRecipe | None,
) -> None:
    phase = "final" if pruning is None else "prune"
    optimization = recipe.final_training if pruning is None else recipe.prune_training
    choice = choose_precision(optimization.precision)
    console.print(f"{phase}: training in {choice.precision} ({choice.why})", soft_wrap=True)
    run.note_precision(f"{phase}_training", choice)
    progress = TrainingProgress(phase, console)
    trainer = StudentTrainer(
        student,
        teacher,
        texts.train,
        optimization,
        recipe.distillation,
        block_ends=block_ends(task.kept_layers, task.spec.dense_decoder_layers),
        pruning=pruning,
        output_dir=run.path / "checkpoints" / phase,
        seed=recipe.seed,
        validation=texts.validation,
        callbacks=[progress],
    )
    try:
        log = train(trainer)
    finally:
        progress.close()
    write_log(run.path / f"{phase}_log.jsonl", log)
