"""What `nash finetune` would do, for `--dry-run`."""

from pathlib import Path

from rich.console import Console

from model_store.store import Store
from nash.checkpoints.opening import open_model
from nash.data.examples import TokenizedPairs
from nash.data.rows import read_rows
from nash.device import choose_device
from nash.dry_run.run_plan import PhasePlan, RunPlan
from nash.measuring.assess import check_assessable
from nash.measuring.metrics import check_references
from nash.modeling.folders import load_tokenizer
from nash.modeling.fresh import new_model
from nash.recipes.recipe import FinetuneRecipe
from nash.run.progress import Stage
from nash.training.checkpoint import largest_folder_bytes


def plan_of(recipe: FinetuneRecipe, out: Path, store: Store, console: Console) -> RunPlan:
    """The plan of `nash finetune`.

    Raises:
        RequestError: data, tokenizer or start model cannot be used.
    """
    data = recipe.data
    with Stage("reading the data", console):
        rows = {"training": read_rows(data.train, data), "validation": read_rows(data.validation, data)}
        rows["test"] = (rows["validation"] if data.test is None else read_rows(data.test, data))[: data.test_rows]
        for split in ("validation", "test"):
            check_references(recipe.metric, [row.targets for row in rows[split]])
    device = choose_device(recipe.device)
    if recipe.model is not None:
        with open_model(recipe.model, store) as found, Stage("checking that the model runs", console):
            tokenizer, parameters = load_tokenizer(found.model.folder), found.model.parameters
            check_assessable(found.model, rows["test"], recipe.metric, data, device)
        shape = f"from {recipe.model}, {parameters / 1e6:.2f} million parameters"
    else:
        assert recipe.shape is not None
        assert recipe.tokenizer is not None
        tokenizer = load_tokenizer(recipe.tokenizer)
        model = new_model(recipe.shape, tokenizer, data.max_source_tokens, data.max_target_tokens)
        parameters = model.num_parameters()
        shape = f"from scratch, {parameters / 1e6:.2f} million parameters"
    with Stage("tokenizing the texts", console):
        pairs = TokenizedPairs.under(data, rows["training"], tokenizer)
    return RunPlan(
        shape=shape,
        rows={split: len(each) for split, each in rows.items()},
        phases=[PhasePlan.of("training", recipe.training, len(pairs), device)],
        out=out,
        bytes=largest_folder_bytes(parameters),
    )
