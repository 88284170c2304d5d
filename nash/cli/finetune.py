"""`nash finetune`: train a dense model by a recipe."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nash.cli.output import (
    DEFAULT_STORE,
    DeviceOption,
    JsonOption,
    ReportToOption,
    StoreOption,
    print_json,
    print_plan,
    progress_console,
    result_console,
)


def command(
    recipe_file: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The run's folder; a repeated call resumes the run.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Publish the model in the store under this name.")] = None,
    alias: Annotated[str, typer.Option("--alias", help="The alias to publish it under.")] = "dense",
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of all random numbers; overrides the recipe's.")
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Training epochs; overrides the recipe's.")] = None,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", min=1, help="Most training steps; overrides the recipe's.")
    ] = None,
    device: DeviceOption = None,
    report_to: ReportToOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; train and write nothing.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Train a dense model by a recipe, evaluate it on the test split and, with --name, publish it."""
    overrides: dict[str, Any] = {
        "seed": seed,
        "device": device,
        "report_to": report_to or None,
        "training.epochs": epochs,
        "training.max_steps": max_steps,
    }
    from model_store.store import Store
    from nash.preflight import check_finetune
    from nash.recipes.recipe import FinetuneRecipe, read_recipe

    recipe = read_recipe(FinetuneRecipe, recipe_file, {k: v for k, v in overrides.items() if v is not None})
    folder = out or Path("runs") / recipe_file.stem
    recipe = check_finetune(recipe, folder, Store(store), name, alias, writes=not dry_run)

    from nash.dry_run.finetune import plan_of
    from nash.finetuning.finetune import finetune
    from nash.modeling.folders import quiet_libraries

    quiet_libraries()
    if dry_run:
        print_plan(plan_of(recipe, folder, Store(store), progress_console()), as_json=as_json)
        return
    report = finetune(recipe, folder, Store(store), progress_console(), name, alias)
    if as_json:
        print_json(report.document())
        return
    console = result_console()
    console.print(f"{report.ref}: {report.dense.parameters / 1e6:.2f} million parameters, {report.n} test rows")
    for metric, value in report.dense.metrics.items():
        console.print(f"{metric.replace('_', ' ')}: {value:.2f} %")
