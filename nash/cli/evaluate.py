"""`nash evaluate`: the quality of one model on task data."""

from pathlib import Path
from typing import Annotated

import typer

from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json, progress_console, result_console
from nash.recipe import MOST_COUNT, MetricKind


def command(
    model: Annotated[str, typer.Argument(metavar="PATH_OR_REF", help="A model directory, or a model in the store.")],
    data: Annotated[
        Path,
        typer.Option(
            "--data", help="JSONL, CSV, TSV or Parquet, hub:OWNER/NAME:SPLIT, or a folder with a file a split."
        ),
    ],
    split: Annotated[str, typer.Option("--split", help="Which one of the folder.")] = "test",
    metric: Annotated[MetricKind, typer.Option("--metric", help="The kind of task.")] = "exact",
    source_column: Annotated[str, typer.Option("--source-column", help="The column of the sources.")] = "source",
    target_columns: Annotated[
        list[str] | None,
        typer.Option(
            "--target-column", help="The column of targets; again for each further right answer. Default: target."
        ),
    ] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="What stands before every source.")] = "",
    dtype: Annotated[str, typer.Option("--dtype", help="What the engine computes in.")] = "float32",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="The engine's threads; its own choice if not given.")
    ] = None,
    max_source_tokens: Annotated[
        int, typer.Option("--max-source-tokens", min=1, max=MOST_COUNT, help="Longer sources are cut.")
    ] = 512,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, max=MOST_COUNT, help="Answers end there at the latest.")
    ] = 256,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Decode every row of a data file with a model and compare with its targets."""
    from model_store.store import Store
    from nash.preflight import check_dtype, check_evaluate
    from nash.recipe import DataLayout

    layout = DataLayout(source_column=source_column, target_columns=target_columns or ["target"], prefix=prefix)
    check_dtype(dtype)
    check_evaluate(model, data, split, layout, metric, Store(store))

    from nash.data_formats import is_split_folder, split_path
    from nash.evaluate import evaluate
    from nash.model_folder import resolve_model
    from nash.models import quiet_libraries
    from nash.progress import Stage
    from nash.rows import read_rows
    from server.engine.sequence import EngineConfig

    quiet_libraries()
    rows = read_rows(split_path(data, split) if is_split_folder(data) else data, layout)
    resolved = resolve_model(model, Store(store))
    config = EngineConfig(
        dtype=dtype, threads=threads, max_source_tokens=max_source_tokens, max_new_tokens=max_new_tokens
    )
    with Stage(f"evaluating {resolved.ref}", progress_console(), len(rows), unit="rows") as stage:
        result = evaluate(resolved.folder, rows, metric, config, stage.update)
    if as_json:
        print_json({"ref": resolved.ref, "n": result.n, "metrics": result.metrics})
        return
    for name, value in result.metrics.items():
        result_console().print(f"{name.replace('_', ' ')}: {value:.2f} %")
