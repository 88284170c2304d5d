"""One phase of training, within a run."""

from transformers import PreTrainedModel

from nash.data.examples import TokenizedPairs
from nash.precision import choose_precision
from nash.pruning.objective import StudentObjective
from nash.pruning.run import PruneRun
from nash.pruning.student import Student
from nash.recipes.layer_selection import block_ends
from nash.recipes.recipe import OptimizationRecipe
from nash.run.folder import CHECKPOINTS
from nash.run.live_log import LiveLog
from nash.training.objective import Objective
from nash.training.phase import Phase
from nash.training.progress import TrainingProgress
from nash.training.validation import TaskScore


def train_student(
    run: PruneRun,
    name: str,
    student: Student,
    teacher: PreTrainedModel,
    kept_layers: tuple[int, ...],
    optimization: OptimizationRecipe,
) -> list[dict[str, float]]:
    """Train a phase of the student; return its log.

    `kept_layers` are the student's decoder layers, by their numbers in the teacher's.
    """
    objective = StudentObjective(
        student,
        teacher,
        run.recipe.distillation,
        block_ends=block_ends(kept_layers, run.spec.dense_decoder_layers),
        pruning=run.recipe.pruning,
        label_smoothing=optimization.label_smoothing,
    )
    return train(run, name, objective, run.train_pairs, optimization)


def train(
    run: PruneRun, name: str, objective: Objective, pairs: TokenizedPairs, optimization: OptimizationRecipe
) -> list[dict[str, float]]:
    """Train a phase whose checkpoints and log are called `name`; return the log."""
    choice = choose_precision(optimization.precision, run.device)
    run.console.print(f"{name}: training on {run.device} in {choice.precision} ({choice.why})", soft_wrap=True)
    run.folder.note_precision(f"{name}_training", choice)
    progress = TrainingProgress(name, run.console, run.page, run.trackers)
    checkpoints = run.path / CHECKPOINTS / name
    phase = Phase(
        objective,
        pairs,
        optimization,
        spec=run.spec,
        folder=checkpoints,
        seed=run.recipe.seed,
        device=run.device,
        validation=run.validation_pairs,
        score=TaskScore.of(
            run.task.validation_rows,
            run.recipe,
            optimization.validation_rows,
            run.device,
            run.dense.folder,
            checkpoints,
        ),
        watcher=progress,
        live_log=LiveLog(run.path / f"{name}_log.jsonl"),
        workers=run.recipe.data.workers,
    )
    try:
        return phase.run()
    finally:
        progress.close()
