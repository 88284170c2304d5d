"""From a dense model to a finished compact one: the stages of a run, in order.

A stage leaves its result in the run's folder and is skipped if the result is there, so an interrupted run continues
where it stopped. The vocabulary is trimmed first, for the teacher too: every later step is then cheaper, and the
teacher's probabilities and answers use only the tokens that stay.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel, set_seed

from model_store.model.config import layout_of, spec_of
from model_store.model.model import INT4, Model
from model_store.model.spec import shortened
from nash import ranks
from nash.data.rows import Texts
from nash.int4.calibration import calibrate
from nash.measuring.random_model import with_vocabulary
from nash.measuring.speedup import SpeedPlan, engine_measure, settle
from nash.modeling.folders import DTYPES, load_compact, load_dense, save_model
from nash.pruning.distillation import DistillationMaps
from nash.pruning.run import LAYERS, TEACHER, VOCABULARY, PruneRun
from nash.pruning.run_training import train, train_student
from nash.pruning.structure_stages import (
    STRUCTURE,
    STRUCTURES,
    choose_structure,
    cut_structure,
    find_structures,
)
from nash.pruning.student import Student
from nash.pruning.task import gate_kinds
from nash.pruning.trials import Trial, best_trial, described
from nash.recipes.layer_selection import trained_candidates
from nash.recipes.recipe import PruneRecipe
from nash.run.folder import CHECKPOINTS
from nash.run.progress import Stage
from nash.structure.calibration import TeacherDistance, calibration_batches, closest_layers, repair
from nash.structure.compaction import compact, shorten_decoder
from nash.structure.masking import Gates
from nash.training.objective import TaskObjective
from nash.training.teacher_answers import with_teacher_answers
from nash.vocabulary.trimming import Coverage, trim_vocabulary

SETTLED = "settled.json"  # the encoder sparsity, settled after the gates were trained


@dataclass(frozen=True, kw_only=True)
class PruningStage:
    """One stage of a run."""

    # The file or folder that it writes last in the run's folder; None: it continues what is there by itself.
    result: str | None
    make: Callable[[PruneRun], None]
    trains: bool = False  # all processes of the run make it together; else the first one alone
    asked: Callable[[PruneRun], bool] = lambda run: True


def walk(run: PruneRun) -> None:
    """Run every stage whose result is missing, up to the finished `model`."""
    for stage in STAGES:
        if not ranks.on_first(partial(_missing, stage, run)):
            continue
        if stage.trains:
            stage.make(run)
        else:
            ranks.on_first(partial(stage.make, run))


def _missing(stage: PruningStage, run: PruneRun) -> bool:
    return stage.asked(run) and (stage.result is None or not (run.path / stage.result).exists())


def stale_when_extended(recipe: PruneRecipe, longer: Sequence[str]) -> list[str]:
    """The results in a run's folder that must be made again when these settings make its training longer.

    The final phase then begins again if the pruning phase goes on; else it goes on itself.
    """
    if any(key.startswith("prune_training.") for key in longer) and recipe.pruning.encoder_sparsity:
        return [SETTLED, "compact", f"{CHECKPOINTS}/final", "model"]
    return ["model"]


def trim(run: PruneRun) -> None:
    """Trim the dense model's vocabulary to what the training rows need."""
    task = run.task
    held_out = {"validation": Texts(task.validation_rows), "test": Texts(task.test_rows)}
    with Stage("trimming the vocabulary", run.console):
        report = trim_vocabulary(task.model, run.path / "trimmed", Texts(task.train_rows), held_out)
    run.folder.write_json(VOCABULARY, report)
    run.console.print(f"vocabulary: {report['kept']} of {report['dense']} tokens are kept")
    for split, coverage in report["coverage"].items():
        run.console.print(f"{split}: {Coverage(**coverage)}", soft_wrap=True)


def choose_layers(run: PruneRun) -> None:
    """Choose the decoder layers that on their own stay closest to the teacher, or that train best."""
    keep = run.recipe.pruning.decoder_layers
    assert isinstance(keep, int), "layers that are listed are not chosen"
    teacher = load_dense(run.teacher).to(run.device)
    with Stage(f"searching for the {keep} decoder layers that stay closest to the whole decoder", run.console):
        batches = calibration_batches(run.train_pairs, run.spec.pad_id, run.recipe.seed, run.device)
        chosen = closest_layers(teacher, keep, TeacherDistance(teacher, batches))
    if run.recipe.pruning.layer_selection == "trained":
        candidates = trained_candidates(run.spec.dense_decoder_layers, keep, chosen)
        trials = {
            described(layers): Trial(
                name=f"layers-{'-'.join(map(str, layers))}",
                kept_layers=layers,
                start=partial(shorten_decoder, teacher, layers),
            )
            for layers in candidates
        }
        chosen = candidates[best_trial(run, trials, teacher.to("cpu"))]
    run.folder.write_json(LAYERS, chosen)


def correct_teacher(run: PruneRun) -> None:
    """Train the teacher on the training rows, so that it knows what it teaches (Minitron, arXiv 2408.11796)."""
    recipe = run.recipe
    training = recipe.final_training.model_copy(update={"max_steps": recipe.distillation.teacher_steps})
    set_seed(recipe.seed)
    model = load_dense(run.dense)
    objective = TaskObjective(model, label_smoothing=training.label_smoothing)
    train(run, "teacher", objective, run.data_pairs, training)
    if ranks.first():
        save_model(model.to("cpu"), run.dense.folder, run.path / TEACHER, torch.float32)


def answer(run: PruneRun) -> None:
    """The teacher's own answers to the training rows. `run.train_rows` reads them."""
    with_teacher_answers(run.task.train_rows, run.teacher, run.recipe, run.device, run.answers_folder, run.console)


def prune_and_cut(run: PruneRun) -> None:
    """Train the student with gates, harden the gates, and write the compact model that remains."""
    recipe, spec, kept = run.recipe, run.spec, run.kept_layers
    set_seed(recipe.seed)
    teacher = load_dense(run.teacher)
    student = Student(
        shorten_decoder(teacher, kept),
        DistillationMaps(spec.d_model, len(kept)),
        gates := Gates(shortened(spec, kept), gate_kinds(recipe.pruning)),
    )
    if recipe.pruning.encoder_sparsity:
        train_student(run, "prune", student, teacher, kept, recipe.prune_training)
    if not ranks.first():
        return
    student.to("cpu")

    def cut(sparsity: float) -> PreTrainedModel:
        return compact(student.model, spec, kept, gates.harden(sparsity))

    sparsity = _settled(run, cut)
    compacted = cut(sparsity)
    if recipe.pruning.repair and sparsity:
        sublayers = layout_of(shortened(spec, kept)).sublayers()
        with Stage("refitting the matrices behind cut parts", run.console):
            batches = calibration_batches(run.train_pairs, spec.pad_id, recipe.seed, run.device)
            repair(compacted, student.model, sublayers, gates.expected(), batches, run.device)
    save_model(compacted, run.teacher.folder, run.path / "compact", torch.float32)


def _settled(run: PruneRun, cut: Callable[[float], PreTrainedModel]) -> float:
    """The recipe's sparsity; for a requested speed, the sparsity that reaches it with what the gates left."""
    if not isinstance(run.plan, SpeedPlan):
        return run.recipe.pruning.encoder_sparsity
    known: float | None = run.folder.read_json(SETTLED)
    if known is None:
        with Stage("measuring the speed of the shape that the gates left", run.console, steady=True):
            known = settle(
                run.plan,
                with_vocabulary(run.spec, run.spec.dense_vocab_size),
                lambda sparsity: spec_of(cut(sparsity).config.to_dict()),
                engine_measure(run.teacher, run.plan.workload),
                most_sparsity=gate_kinds(run.recipe.pruning).reach(run.spec),
            )
        run.folder.write_json(SETTLED, known)
    return known


def finish(run: PruneRun) -> None:
    """Fine-tune the compact model with its teacher, and write the finished model."""
    recipe = run.recipe
    set_seed(recipe.seed)
    compacted = Model.open(run.path / "compact")
    model = load_compact(compacted)
    if recipe.final_training.epochs:
        maps = DistillationMaps(run.spec.d_model, len(run.kept_layers), compacted.spec.hidden)
        student = Student(model, maps)
        train_student(run, "final", student, load_dense(run.teacher), run.kept_layers, recipe.final_training)
    if not ranks.first():
        return
    save_model(model.to("cpu"), run.teacher.folder, run.path / "model", DTYPES[recipe.save_dtype])


def calibrate_int4(run: PruneRun) -> None:
    """Write the finished model's layers in four bits per weight, beside its weights. Like int4, this is for CPUs."""
    limits = {key: getattr(run.recipe.data, key) for key in ("max_source_tokens", "max_target_tokens")}
    calibrate(Model.open(run.path / "model"), run.task.train_rows, run.console, seed=run.recipe.seed, **limits)


def _searches(run: PruneRun) -> bool:
    return run.recipe.pruning.structure == "search"


STAGES = (
    PruningStage(result=VOCABULARY, make=trim, asked=lambda run: run.recipe.pruning.trim_vocab),
    PruningStage(
        result=TEACHER, make=correct_teacher, trains=True, asked=lambda run: run.recipe.distillation.teacher_steps > 0
    ),
    PruningStage(result=None, make=answer, asked=lambda run: run.recipe.distillation.sequence_level),
    PruningStage(
        result=LAYERS,
        make=choose_layers,
        trains=True,
        asked=lambda run: (
            run.recipe.pruning.layer_selection in {"auto", "trained"}
            and isinstance(run.recipe.pruning.decoder_layers, int)
        ),
    ),
    PruningStage(result=STRUCTURES, make=find_structures, asked=_searches),
    PruningStage(result=STRUCTURE, make=choose_structure, trains=True, asked=_searches),
    PruningStage(result="compact", make=cut_structure, asked=_searches),
    PruningStage(result="compact", make=prune_and_cut, trains=True, asked=lambda run: not _searches(run)),
    PruningStage(result="model", make=finish, trains=True),
    PruningStage(result=f"model/{INT4}", make=calibrate_int4, asked=lambda run: run.recipe.quantization.int4),
)
