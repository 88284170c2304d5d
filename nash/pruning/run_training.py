"""One phase of training, within a run."""

from transformers import PreTrainedModel

from nash import ranks
from nash.data.examples import TokenizedPairs
from nash.precision import choose_precision
from nash.pruning.objective import StudentObjective
from nash.pruning.run import PruneRun
from nash.pruning.student import Student
from nash.recipes.layer_selection import block_ends
from nash.recipes.recipe import OptimizationRecipe
from nash.training.objective import Objective
from nash.training.phase import Phase, write_log
from nash.training.progress import TrainingProgress


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
    progress = TrainingProgress(name, run.console)
    phase = Phase(
        objective,
        pairs,
        optimization,
        spec=run.spec,
        folder=run.path / "checkpoints" / name,
        seed=run.recipe.seed,
        device=run.device,
        validation=run.validation_pairs,
        watcher=progress,
        workers=run.recipe.data.workers,
    )
    try:
        log = phase.run()
    finally:
        progress.close()
    if ranks.first():
        write_log(run.path / f"{name}_log.jsonl", log)
    return log
