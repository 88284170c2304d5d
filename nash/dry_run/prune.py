"""What `nash prune` would do, for `--dry-run`."""

from pathlib import Path

from rich.console import Console

from model_store.store import Store
from nash.checkpoints.opening import open_model
from nash.device import choose_device
from nash.dry_run.run_plan import PhasePlan, RunPlan
from nash.measuring.assess import check_assessable
from nash.measuring.workload import on_device
from nash.preflight import asked_layers, check_apart
from nash.pruning.task import prepare
from nash.recipes.recipe import PruneRecipe
from nash.run.progress import Stage
from nash.training.checkpoint import largest_folder_bytes


def plan_of(recipe: PruneRecipe, out: Path, store: Store, console: Console) -> RunPlan:
    """Read and check everything that the run would; speed is not measured.

    Raises:
        RequestError: model, data or targets cannot be used.
    """
    device = choose_device(recipe.device)
    with open_model(recipe.model, store) as found:
        with Stage("reading the data", console):
            task = prepare(recipe, found)
            check_apart(out, task.model.folder)
        workload = on_device(recipe.workload, device)
        with Stage("checking that the model runs", console):
            check_assessable(task.model, task.test_rows, recipe.metric, recipe.data, device, workload)
    # Every target of a row, and every answer of the teacher that is not left out, is a pair of its own.
    distillation = recipe.distillation
    own = not distillation.sequence_level or distillation.keep_targets
    taught = distillation.answers if distillation.sequence_level else 0
    answers = [taught + (len(row.targets) if own else 0) for row in task.train_rows]
    trained = {"prune": recipe.prune_training, "final": recipe.final_training}
    if recipe.pruning.structure == "search" or (recipe.pruning.speedup is None and not recipe.pruning.encoder_sparsity):
        del trained["prune"]
    return RunPlan(
        shape=_shape(recipe, asked_layers(recipe, task.spec), task.spec.dense_decoder_layers),
        rows={"training": len(task.train_rows), "validation": len(task.validation_rows), "test": len(task.test_rows)},
        phases=[PhasePlan.of(name, each, sum(answers), device) for name, each in trained.items() if each.epochs],
        out=out,
        bytes=len(trained) * largest_folder_bytes(task.model.parameters),
    )


def _shape(recipe: PruneRecipe, layers: tuple[int, ...], total: int) -> str:
    pruning = recipe.pruning
    if pruning.speedup is not None:
        return f"{pruning.speedup:g} times as fast as {recipe.model}; the shape for it is found by measuring, at first"
    stacks = "encoder" if pruning.gated_stacks == "encoder" else "both stacks"
    which = "" if pruning.layer_selection in {"auto", "trained"} else f" ({', '.join(map(str, layers))})"
    return (
        f"{len(layers)} of {total} decoder layers{which}, {pruning.encoder_sparsity:.0%} of {stacks} cut, "
        f"of {recipe.model}"
    )
