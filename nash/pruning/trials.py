"""Deciding between candidates by a short training of each.

What a cut costs before training says little about what it costs afterwards: training makes up for some cuts and not for
others.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel, set_seed

from nash.pruning.distillation import DistillationMaps
from nash.pruning.run import PruneRun
from nash.pruning.run_training import train_student
from nash.pruning.student import Student


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A candidate: `start` makes the model that is trained."""

    name: str  # of its checkpoints and its log
    kept_layers: tuple[int, ...]  # decoder layers, by their numbers in the dense decoder
    start: Callable[[], PreTrainedModel]


def best_trial(run: PruneRun, trials: Mapping[str, Trial], teacher: PreTrainedModel) -> int:
    """The place of the candidate with the lowest validation loss after `search_steps` of the final phase's training.

    The keys of `trials` describe the candidates to the user. A single candidate is not trained.
    """
    if len(trials) == 1:
        return 0
    losses = []
    for description, trial in trials.items():
        losses.append(_loss(run, trial, teacher))
        run.console.print(f"{description}: validation loss {losses[-1]:.4f}", soft_wrap=True)
    best = min(range(len(losses)), key=losses.__getitem__)
    run.console.print(f"chosen: {list(trials)[best]}", soft_wrap=True)
    return best


def _loss(run: PruneRun, trial: Trial, teacher: PreTrainedModel) -> float:
    steps, final = run.recipe.pruning.search_steps, run.recipe.final_training
    short = final.model_copy(update={"max_steps": steps, "warmup_steps": min(final.warmup_steps, steps // 4)})
    set_seed(run.recipe.seed)
    student = Student(trial.start(), DistillationMaps(run.spec.d_model, len(trial.kept_layers)))
    log = train_student(run, trial.name, student, teacher, trial.kept_layers, short)
    teacher.to("cpu")
    return [entry["eval_loss"] for entry in log if "eval_loss" in entry][-1]


def described(layers: tuple[int, ...]) -> str:
    """Decoder layers in words."""
    return f"{len(layers)} decoder layer{'s' if len(layers) > 1 else ''} ({', '.join(map(str, layers))})"
