"""The walk from a dense model to a finished compact one, in one run folder.

The vocabulary, the decoder layers, the teacher's answers, pruning with gates, hardening, compaction, final fine-tune,
and where asked for the same weights in four bits.
Every stage leaves its result in the folder and is passed over when it is there, so a run that was interrupted goes on
where it stopped.

A vocabulary is trimmed before anything else, the teacher's too: every step is cheaper for it, and the teacher's
probabilities and answers are made of the tokens that stay.
"""

from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from model_store.int4 import INT4
from model_store.spec import ModelSpec
from nash.calibration import calibration_batches, closest_layers, repair
from nash.compaction import compact, shorten_decoder
from nash.data import TokenizedPairs
from nash.distillation import DistillationMaps
from nash.int4 import calibrate
from nash.layer_selection import block_ends
from nash.masking import Gates
from nash.models import DTYPES, load_compact, load_dense, load_tokenizer, read_spec, save_model
from nash.parts import parts_of, shortened
from nash.progress import TrainingProgress
from nash.pruning_task import Task, asked_layers, gate_kinds, texts_of
from nash.pruning_training import StudentTrainer
from nash.random_model import with_vocabulary
from nash.recipe import PruneRecipe, PruningRecipe
from nash.run_folder import RunFolder
from nash.speedup import SpeedPlan, engine_measure, settle
from nash.teacher_answers import with_teacher_answers
from nash.training import train, write_log
from nash.vocabulary import Coverage, trim_vocabulary

# In the run's folder: the decoder layers that "auto" chose, the encoder sparsity after a look at what the gates
# decided, and what was kept of the vocabulary.
LAYERS, SETTLED, VOCABULARY = "layers.json", "settled.json", "vocabulary.json"


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
    model = run.path / "model"
    if recipe.quantization.int4 and not (model / INT4).exists():
        console.print("calibrating four bits a weight")
        limits = {key: getattr(recipe.data, key) for key in ("max_source_tokens", "max_target_tokens")}
        calibrate(model, task.train_rows, seed=recipe.seed, **limits)


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
    if not (run.path / "compact").is_dir():
        _prune_phase(recipe, task, plan, run, console)
    _final_phase(recipe, task, run.path, console)


def _trimmed(task: Task, run: RunFolder, console: Console) -> Task:
    """The task with the dense model that has the vocabulary of the training rows."""
    folder, report = run.path / "trimmed", run.read_json(VOCABULARY)
    if report is None or not folder.is_dir():
        held_out = {"validation": texts_of(task.validation_rows), "test": texts_of(task.test_rows)}
        report = trim_vocabulary(task.folder, folder, texts_of(task.train_rows), held_out)
        run.write_json(VOCABULARY, report)
    console.print(f"vocabulary: {report['kept']} of {report['dense']} tokens are kept")
    for split, coverage in report["coverage"].items():
        console.print(f"{split}: {Coverage(**coverage)}", soft_wrap=True)
    return replace(task, folder=folder, spec=read_spec(folder), tokenizer=load_tokenizer(folder))


def _chosen(recipe: PruneRecipe, task: Task, run: RunFolder, answers: Path, console: Console) -> Task:
    """The task with the decoder layers that stay, and with the teacher's answers where these are to be learnt."""
    kept, keep = asked_layers(recipe.pruning, task.spec), recipe.pruning.decoder_layers
    if recipe.pruning.layer_selection == "auto" and isinstance(keep, int):
        known = run.read_json(LAYERS)
        if known is None:
            console.print(f"looking for the {keep} decoder layers that stay closest to all")
            known = closest_layers(load_dense(task.folder), keep, _calibration(recipe, task))
            run.write_json(LAYERS, known)
        kept = tuple(known)
    rows = task.train_rows
    if recipe.distillation.sequence_level:
        rows = with_teacher_answers(rows, task.folder, recipe.data, answers, console)
    return replace(task, kept_layers=kept, train_rows=rows)


def _calibration(recipe: PruneRecipe, task: Task) -> list[dict[str, Tensor]]:
    pairs = TokenizedPairs.under(recipe.data, task.train_rows, task.tokenizer)
    return calibration_batches(pairs, task.spec.pad_id, recipe.seed)


def _prune_phase(recipe: PruneRecipe, task: Task, plan: SpeedPlan | None, run: RunFolder, console: Console) -> None:
    """Train the student with gates, harden them, and write the compact model they leave to the run's `compact`."""
    set_seed(recipe.seed)
    teacher = load_dense(task.folder)
    student = shorten_decoder(teacher, task.kept_layers)
    student.gates = Gates(shortened(task.spec, task.kept_layers), gate_kinds(recipe.pruning))
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
                most_sparsity=gate_kinds(recipe.pruning).reach(task.spec),
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
