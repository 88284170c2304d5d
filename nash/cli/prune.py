"""`nash prune`: from a fine-tuned dense model to a compact one."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel

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
from nash.recipes.recipe import MOST_COUNT, PruneRecipe


def _flag(name: str, key: str, help_text: str, **bounds: float) -> Any:
    """A flag for a recipe key; its help names the choices and the default that the recipe has."""
    section: Any = PruneRecipe
    *sections, last = key.split(".")
    for part in sections:
        section = section.model_fields[part].annotation
    assert issubclass(section, BaseModel)
    field = section.model_fields[last]
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if choices:
        help_text += f" One of {', '.join(choices)}."
    default = field.get_default()
    shown = ", ".join(default) if isinstance(default, list) else default
    if not field.is_required() and shown not in (None, ""):
        help_text += f" Default: {str(shown).lower() if isinstance(shown, bool) else shown}."
    return typer.Option(name, help=help_text, **bounds)  # type: ignore[arg-type]


def command(
    recipe_file: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A TOML file; flags override its keys.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="PATH_OR_REF", help="A model directory, or a model in the store."),
    ] = None,
    train: Annotated[Path | None, typer.Option("--train", help="Training rows: a file, a folder, or hub:...")] = None,
    validation: Annotated[Path | None, typer.Option("--eval", help="Validation rows.")] = None,
    test: Annotated[Path | None, typer.Option("--test", help="Test rows. Default: the validation rows.")] = None,
    source_column: Annotated[
        str | None, _flag("--source-column", "data.source_column", "The column of the sources.")
    ] = None,
    target_columns: Annotated[
        list[str] | None,
        _flag(
            "--target-column",
            "data.target_columns",
            "The column of the targets; repeat it for each further right answer.",
        ),
    ] = None,
    prefix: Annotated[str | None, _flag("--prefix", "data.prefix", "Text to put before every source.")] = None,
    max_source_tokens: Annotated[
        int | None,
        _flag(
            "--max-source-tokens",
            "data.max_source_tokens",
            "Longer sources are cut; no more than the model's positions.",
            min=1,
            max=MOST_COUNT,
        ),
    ] = None,
    max_target_tokens: Annotated[
        int | None,
        _flag(
            "--max-target-tokens",
            "data.max_target_tokens",
            "Longer targets are cut; no more than the model's positions.",
            min=1,
            max=MOST_COUNT,
        ),
    ] = None,
    encoder_sparsity: Annotated[
        float | None,
        _flag(
            "--encoder-sparsity",
            "pruning.encoder_sparsity",
            "Share of the encoder's weights to cut.",
        ),
    ] = None,
    decoder_layers: Annotated[
        int | None, typer.Option("--decoder-layers", help="Decoder layers to keep. Default: all.")
    ] = None,
    speedup: Annotated[
        float | None,
        typer.Option("--speedup", help="How many times faster than the dense model; replaces the two options above."),
    ] = None,
    batch: Annotated[
        int | None, _flag("--batch", "workload.batch", "Requests in one batch for planning and measuring speed.", min=1)
    ] = None,
    source_tokens: Annotated[
        int | None, typer.Option("--source-tokens", min=1, help="Length of each source. Default: the data's mean.")
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option("--new-tokens", min=1, help="Length of each answer. Default: the data's mean.")
    ] = None,
    dtype: Annotated[str | None, _flag("--dtype", "workload.dtype", "The dtype that the engine computes in.")] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of the engine. Default: the engine chooses.")
    ] = None,
    trim_vocab: Annotated[
        bool | None,
        _flag("--trim-vocab/--no-trim-vocab", "pruning.trim_vocab", "Keep the tokens that the training rows need."),
    ] = None,
    int4: Annotated[
        bool | None, typer.Option("--int4/--no-int4", help="Also calibrate the result to four bits: dtype int4.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The model's name in the store.")] = None,
    alias: Annotated[str | None, _flag("--alias", "alias", "The pruned model's alias.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The run's folder; a repeated call resumes the run. Default: runs/NAME-ALIAS."),
    ] = None,
    seed: Annotated[int | None, _flag("--seed", "seed", "Seed of all random numbers.", min=0)] = None,
    epochs: Annotated[float | None, _flag("--epochs", "final_training.epochs", "Epochs of each phase.")] = None,
    max_steps: Annotated[
        int | None,
        typer.Option("--max-steps", min=1, help="Most steps of each phase. Default: as many as its epochs take."),
    ] = None,
    batch_size: Annotated[
        int | None,
        _flag("--batch-size", "final_training.batch_size", "Rows of a training step.", min=1, max=MOST_COUNT),
    ] = None,
    learning_rate: Annotated[
        float | None,
        _flag("--learning-rate", "final_training.learning_rate", "Learning rate of the weights in each phase."),
    ] = None,
    device: DeviceOption = None,
    metric: Annotated[str | None, _flag("--metric", "metric", "The kind of task.")] = None,
    min_quality: Annotated[
        str | None,
        typer.Option(
            "--min-quality",
            metavar="SHARE",
            help="Publish nothing unless this share of the dense model's quality is kept, as in 97% or 0.97.",
        ),
    ] = None,
    publish_slower: Annotated[
        bool | None,
        typer.Option("--publish-slower", help="Also publish a model that is measured slower than the dense one."),
    ] = None,
    report_to: ReportToOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; train and write nothing.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Prune a dense model by a recipe or by flags (which win over the recipe's keys) and publish the result."""
    from model_store.store import Store
    from nash.errors import RequestError
    from nash.preflight import check_prune
    from nash.recipes.recipe import build_recipe, read_recipe

    flags: dict[str, Any] = {
        "model": model,
        "name": name,
        "alias": alias,
        "seed": seed,
        "device": device,
        "report_to": report_to or None,
        "metric": metric,
        "min_quality": min_quality and _share(min_quality),
        "publish_slower": publish_slower,
        # A path on the command line is relative to where the user is, not to the recipe.
        "data.train": train and _from_here(train),
        "data.validation": validation and _from_here(validation),
        "data.test": test and _from_here(test),
        "data.source_column": source_column,
        "data.target_columns": target_columns or None,
        "data.prefix": prefix,
        "data.max_source_tokens": max_source_tokens,
        "data.max_target_tokens": max_target_tokens,
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
    }
    training = {"epochs": epochs, "max_steps": max_steps, "batch_size": batch_size, "learning_rate": learning_rate}
    for phase in ("prune_training", "final_training"):
        flags |= {f"{phase}.{key}": value for key, value in training.items()}
    overrides = {key: value for key, value in flags.items() if value is not None}
    if recipe_file is not None:
        recipe = read_recipe(PruneRecipe, recipe_file, overrides)
    elif overrides:
        recipe = build_recipe(PruneRecipe, {}, "given by flags", Path(), overrides)
    else:
        raise RequestError("nothing to prune: give a RECIPE file, or --model, --train, --eval and --name")
    folder = out or Path("runs") / f"{recipe.name}-{recipe.alias}"
    asked = recipe.pruning.decoder_layers
    recipe = check_prune(recipe, folder, Store(store), writes=not dry_run)
    console = progress_console()
    if recipe.pruning.decoder_layers != asked:
        kept = f"{recipe.pruning.decoder_layers} of the decoder's layers are kept"
        console.print(f"no shape and no speed is asked for: {kept} (--decoder-layers, --speedup)", soft_wrap=True)

    from nash.dry_run.prune import plan_of
    from nash.modeling.folders import quiet_libraries
    from nash.pruning.prune import prune

    quiet_libraries()
    if dry_run:
        print_plan(plan_of(recipe, folder, Store(store), console), as_json=as_json)
        return
    report = prune(recipe, folder, Store(store), console)
    if as_json:
        print_json(report.document())
    else:
        result_console().print(report.table())


def _share(text: str) -> float:
    from nash.errors import RequestError
    from nash.recipes.recipe import MOST_SHARE

    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= MOST_SHARE:
        raise RequestError(f"--min-quality {text!r} is not a share of the dense model's quality: write 97% or 0.97")
    return share


def _from_here(data: Path) -> str:
    from nash.data.formats import on_hub

    return str(data if on_hub(data) else data.absolute())
