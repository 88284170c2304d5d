"""`nash init`: a commented recipe for a model and data."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model_store.version.ref import looks_like_path
from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json, progress_console, result_console

if TYPE_CHECKING:
    from nash.run.draft import Limit

_SHARE = 0.99  # of the texts are not cut
_STEP = 8  # limits are multiples of it


def command(
    model: Annotated[
        str, typer.Option("--model", metavar="PATH_OR_REF", help="A model directory, or a model in the store.")
    ],
    train: Annotated[
        Path,
        typer.Option("--train", "--data", help="Training rows: a file, hub:..., or a folder with one file per split."),
    ],
    validation: Annotated[
        Path | None,
        typer.Option("--eval", "--validation", help="Validation rows. Default: the file validation beside --train."),
    ] = None,
    test: Annotated[
        Path | None, typer.Option("--test", help="Test rows. Default: the file test beside --train.")
    ] = None,
    source_column: Annotated[
        str | None, typer.Option("--source-column", help="The column of the sources. Default: guessed.")
    ] = None,
    target_column: Annotated[
        str | None, typer.Option("--target-column", help="The column of the targets. Default: guessed.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The name to publish under. Default: after the model.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The recipe; a new file.")] = Path("recipe.toml"),
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Look at a model and at data, and write a commented recipe that `nash prune` takes as it stands."""
    import tomllib

    from model_store.store import Store
    from nash.checkpoints.folder import locate
    from nash.data.formats import is_split_folder, on_hub, split_path
    from nash.data.guess import guess_columns, guess_metric
    from nash.data.rows import read_rows
    from nash.errors import RequestError
    from nash.preflight import FIRST_ROWS, check_dense, check_files, check_prune
    from nash.recipes.recipe import DataLayout, PruneRecipe, build_recipe
    from nash.run.draft import Draft
    from nash.run.folder import check_new_file

    check_new_file(out, "--out")
    found = locate(model, Store(store))
    check_dense(found)
    check_files(found.model)
    beside = train if is_split_folder(train) else None
    splits = {"train": train if beside is None else split_path(beside, "train")}
    for split, given in (("validation", validation), ("test", test)):
        there = given or (None if on_hub(train) else _beside(splits["train"], split))
        if there is not None:
            splits[split] = there
    if "validation" not in splits:
        raise RequestError(f"no validation rows are found beside {train}: give --eval")
    columns = guess_columns(splits["train"], source_column, target_column)
    layout = DataLayout(source_column=columns.source, target_columns=[columns.target])
    rows = read_rows(splits["train"], layout, most=FIRST_ROWS)
    metric = guess_metric(rows, columns)

    from nash.data.examples import TokenizedPairs
    from nash.modeling.folders import load_tokenizer, quiet_libraries

    quiet_libraries()
    tokenizer = load_tokenizer(found.model.folder)
    pairs = TokenizedPairs.of(rows, tokenizer, max_source_tokens=2**30, max_target_tokens=2**30)
    sources, targets = pairs.lengths().T.tolist()
    spec = found.model.spec
    draft = Draft(
        model=model,
        name=name or _name_of(model),
        spec=spec,
        splits=splits,
        columns=columns,
        metric=metric,
        source_limit=_limit(sources, spec.max_positions),
        target_limit=_limit(targets, spec.max_positions),
    )
    text = draft.toml(out.parent)
    table = tomllib.loads(text)
    if "/" in table["model"]:
        table["model"] = str((out.parent / table["model"]).absolute())
    recipe = build_recipe(PruneRecipe, table, str(out), out.parent)
    check_prune(recipe, Path("runs") / f"{recipe.name}-{recipe.alias}", Store(store), writes=False)
    out.write_text(text, encoding="utf-8")
    if as_json:
        print_json({"path": str(out.absolute()), "metric": metric.metric, "name": draft.name})
        return
    progress_console().print(f"metric {metric.metric}: {metric.why}", soft_wrap=True)
    result_console().print(f"{out}: look at it, then run nash prune {out}", soft_wrap=True)


def _beside(train: Path, split: str) -> Path | None:
    """The data of another split that stand beside the training rows: train.jsonl, validation.jsonl."""
    other = train.with_name(train.name.replace("train", split, 1))
    return other if other != train and other.exists() else None


def _name_of(model: str) -> str:
    """A name for the store: the REF's own, or the folder's with what is not allowed in a name replaced."""
    own = Path(model).resolve().name if looks_like_path(model) else re.split("[@:]", model)[0]
    return re.sub(r"[^a-z0-9._-]+", "-", own.lower()).strip("-._")[:64] or "model"


def _limit(lengths: Sequence[int], positions: int | None) -> "Limit":
    from nash.run.draft import Limit

    ranked = sorted(lengths)
    most = ranked[min(len(ranked) - 1, round(_SHARE * len(ranked)))]
    tokens = -(-most // _STEP) * _STEP
    if positions is not None and tokens > positions:
        return Limit(
            tokens=positions, why=f"all that the model has positions for: longer ones, up to {ranked[-1]}, are cut"
        )
    return Limit(
        tokens=tokens, why=f"{_SHARE:.0%} of the texts looked at have at most {most}, the longest {ranked[-1]}"
    )
