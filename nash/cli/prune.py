"""`nash prune`: from a fine-tuned dense model to a compact one."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json, progress_console, result_console


def command(
    recipe_file: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="A TOML file.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="PATH_OR_REF", help="The dense model.")] = None,
    train: Annotated[Path | None, typer.Option("--train", help="Training rows: a file, a folder, or hub:...")] = None,
    validation: Annotated[Path | None, typer.Option("--eval", help="Validation rows.")] = None,
    test: Annotated[Path | None, typer.Option("--test", help="Test rows; default: the validation rows.")] = None,
    encoder_sparsity: Annotated[float | None, typer.Option("--encoder-sparsity")] = None,
    decoder_layers: Annotated[int | None, typer.Option("--decoder-layers")] = None,
    speedup: Annotated[
        float | None,
        typer.Option("--speedup", help="How many times faster than the dense model, in place of the two before."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Requests at once, where speed is asked and measured. [1]")
    ] = None,
    source_tokens: Annotated[
        int | None, typer.Option("--source-tokens", min=1, help="Their length; default: the data's mean.")
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option("--new-tokens", min=1, help="Their answers' length; default: the data's mean.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="What the engine computes them in. [float32]")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="The engine's threads there.")] = None,
    trim_vocab: Annotated[
        bool | None, typer.Option("--trim-vocab/--no-trim-vocab", help="Keep the tokens that the training rows need.")
    ] = None,
    int4: Annotated[
        bool | None, typer.Option("--int4/--no-int4", help="Also calibrate the result to four bits: dtype int4.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The model's name in the store.")] = None,
    alias: Annotated[str | None, typer.Option("--alias", help="The pruned model's alias; default: pruned.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; called again, the run goes on.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0)] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Epochs of each phase.")] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", min=1, help="Steps of each phase.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="The kind of task, as in a recipe. [exact]")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Prune a dense model by a recipe or by flags (which win over the recipe's keys) and publish the result."""
    from model_store.store import Store
    from nash.errors import RequestError
    from nash.models import quiet_libraries
    from nash.prune import prune
    from nash.recipe import PruneRecipe, build_recipe, read_recipe

    flags: dict[str, Any] = {
        "model": model,
        "name": name,
        "alias": alias,
        "seed": seed,
        "metric": metric,
        # A path on the command line is relative to where the user is, not to the recipe.
        "data.train": train and _from_here(train),
        "data.validation": validation and _from_here(validation),
        "data.test": test and _from_here(test),
        "pruning.encoder_sparsity": encoder_sparsity,
        "pruning.decoder_layers": decoder_layers,
        "pruning.trim_vocab": trim_vocab,
        "pruning.speedup": speedup,
        "quantization.int4": int4,
        "workload.batch": batch,
        "workload.source_tokens": source_tokens,
        "workload.new_tokens": new_tokens,
        "workload.dtype": dtype,
        "workload.threads": threads,
        "prune_training.epochs": epochs,
        "prune_training.max_steps": max_steps,
        "final_training.epochs": epochs,
        "final_training.max_steps": max_steps,
    }
    overrides = {key: value for key, value in flags.items() if value is not None}
    if recipe_file is not None:
        recipe = read_recipe(PruneRecipe, recipe_file, overrides)
    elif overrides:
        recipe = build_recipe(PruneRecipe, {}, "given by flags", Path(), overrides)
    else:
        raise RequestError("nothing to prune: give a RECIPE file, or --model, --train, --eval and --name")
    quiet_libraries()
    folder = out or Path("runs") / f"{recipe.name}-{recipe.alias}"
    report = prune(recipe, folder, Store(store), progress_console())
    if as_json:
        print_json(report.document())
    else:
        result_console().print(report.table())


def _from_here(data: Path) -> str:
    from nash.data_formats import on_hub

    return str(data if on_hub(data) else data.absolute())
