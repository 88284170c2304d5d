"""The plan for a requested speed: measured once, and kept in the run's folder."""

from dataclasses import asdict

from rich.console import Console

from nash.data.rows import Texts
from nash.measuring.speedup import SpeedPlan, TablePlan, engine_measure, make_plan, make_table_plan
from nash.measuring.workload import workload_of
from nash.pruning.task import Task, gate_kinds
from nash.recipes.recipe import PruneRecipe, WorkloadRecipe
from nash.run.folder import RunFolder
from nash.run.progress import Stage
from nash.vocabulary.trimming import plan_vocabulary

PLAN = "plan.json"  # in the run's folder


def plan_for(recipe: PruneRecipe, task: Task, run: RunFolder, console: Console) -> SpeedPlan | TablePlan | None:
    """The run's plan, or a new one from measurements; None if the recipe gives the shape itself.

    Raises:
        RequestError: the requested speed is out of reach.
    """
    speedup = recipe.pruning.speedup
    if speedup is None:
        return None
    searches = recipe.pruning.structure == "search"
    known = run.read_json(PLAN)
    if known is not None:
        return TablePlan.of(known) if searches else SpeedPlan.of(known)
    workload = workload_of(recipe.workload, recipe.data, task.train_rows, task.tokenizer)
    with Stage(f"measuring what is {speedup:g} times as fast, {workload}", console, steady=True):
        measure = engine_measure(task.model, workload)
        kept = len(plan_vocabulary(task.model, Texts(task.train_rows)).kept) if recipe.pruning.trim_vocab else None
        plan: SpeedPlan | TablePlan
        if searches:
            plan = make_table_plan(speedup, task.spec, workload, measure, vocabulary=kept)
        else:
            reach = gate_kinds(recipe.pruning).reach(task.spec)
            plan = make_plan(speedup, task.spec, workload, measure, most_sparsity=reach, vocabulary=kept)
    console.print(f"pruning to {plan}", soft_wrap=True)
    return plan


def planned(recipe: PruneRecipe, plan: SpeedPlan | TablePlan) -> PruneRecipe:
    """The recipe with the plan's workload and its shape, if it has one, as if they had been requested."""
    changed = {"workload": WorkloadRecipe(**asdict(plan.workload))}
    if isinstance(plan, TablePlan):
        return recipe.model_copy(update=changed)
    shape = {"decoder_layers": plan.decoder_layers, "encoder_sparsity": plan.encoder_sparsity}
    return recipe.model_copy(update=changed | {"pruning": recipe.pruning.model_copy(update=shape)})
