"""`nash evaluate`: the quality of one model on task data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json, progress_console, result_console
from nash.recipes.recipe import MOST_COUNT, MetricKind

if TYPE_CHECKING:
    from model_store.find import FoundModel
    from nash.measuring.evaluate import Evaluation, Prediction
    from server.engine.dtype_choice import DtypeChoice

_SHOWN_ROWS = 20  # of those that differ; the file of --predictions has all


def command(
    model: Annotated[
        str,
        typer.Argument(metavar="PATH_OR_REF", help="A model directory, a model in the store, or hub:OWNER/NAME."),
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="A JSONL, CSV, TSV or Parquet file, hub:OWNER/NAME:SPLIT, or a folder with one file per split.",
        ),
    ],
    split: Annotated[str, typer.Option("--split", help="The split to read from a folder.")] = "test",
    metric: Annotated[MetricKind, typer.Option("--metric", help="The kind of task.")] = "exact",
    source_column: Annotated[str, typer.Option("--source-column", help="The column of the sources.")] = "source",
    target_columns: Annotated[
        list[str] | None,
        typer.Option(
            "--target-column",
            help="The column of the targets; repeat it for each further right answer. Default: target.",
        ),
    ] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="Text to put before every source.")] = "",
    dtype: Annotated[
        str,
        typer.Option("--dtype", help="A dtype, or auto: the fastest whose recorded quality holds, else float32."),
    ] = "auto",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, or auto: CUDA if there is one.")] = "auto",
    record: Annotated[
        bool, typer.Option("--record", help="Keep the figure beside the version; dtype=auto goes by these records.")
    ] = False,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", metavar="FILE", help="Write source, targets, answer and score of every row."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="PATH_OR_REF", help="Also evaluate this model, and show where the answers differ."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of the engine. Default: the engine chooses.")
    ] = None,
    max_source_tokens: Annotated[
        int, typer.Option("--max-source-tokens", min=1, max=MOST_COUNT, help="Longer sources are cut.")
    ] = 512,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, max=MOST_COUNT, help="Longer answers are cut.")
    ] = 256,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Decode every row of a data file with a model and compare with its targets."""
    from model_store.store import Store
    from model_store.version.quality import REFERENCE, finding
    from model_store.version.ref import looks_like_path
    from nash.device import choose_device
    from nash.errors import RequestError
    from nash.preflight import check_evaluate
    from nash.recipes.recipe import DataLayout
    from nash.run.folder import check_new_file
    from server.engine.interface.config import EngineConfig

    if record and looks_like_path(model):
        raise RequestError(f"--record keeps a figure beside a version in the store: publish {model} and give its REF")
    layout = DataLayout(source_column=source_column, target_columns=target_columns or ["target"], prefix=prefix)
    opened = Store(store)
    asked = EngineConfig(
        dtype=dtype,
        device=choose_device(device),
        threads=threads,
        max_source_tokens=max_source_tokens,
        max_new_tokens=max_new_tokens,
    )
    if predictions is not None:
        check_new_file(predictions, "--predictions")
    for each in [model] if against is None else [against, model]:
        check_evaluate(each, data, split, layout, metric, asked, opened)

    from nash.checkpoints.opening import open_model
    from nash.data.formats import is_split_folder, split_path
    from nash.data.rows import read_rows
    from nash.measuring.by_dtype import quality_record
    from nash.measuring.evaluate import differing, evaluate, scored, write_predictions
    from nash.modeling.folders import quiet_libraries
    from nash.run.progress import Stage
    from server.engine.dtype_choice import with_dtype

    quiet_libraries()
    file = split_path(data, split) if is_split_folder(data) else data
    split = split if is_split_folder(data) else data.stem
    rows = read_rows(file, layout)

    def evaluated(ref: str) -> tuple["FoundModel", EngineConfig, "DtypeChoice", "Evaluation"]:
        with open_model(ref, opened) as found:
            known = () if found.version is None else opened.quality(found.version.ref)
            config, choice = with_dtype(asked, known)
            progress_console().print(f"{found.ref} on {config.device} in {choice.dtype} ({choice.why})", soft_wrap=True)
            with Stage(f"evaluating {found.ref}", progress_console(), len(rows), unit="rows") as stage:
                return found, config, choice, evaluate(found.model, rows, metric, config, stage.update)

    resolved, config, choice, result = evaluated(model)
    document: dict[str, Any] = {
        "ref": resolved.ref,
        "n": result.n,
        "metrics": result.metrics,
        "dtype": choice.dtype,
        "dtype_why": choice.why,
        "device": config.device,
    }
    other = None
    if against is not None:
        opposite, _, its_choice, other = evaluated(against)
    answered = scored(rows, result.answers, metric, None if other is None else other.answers)
    if predictions is not None:
        write_predictions(predictions, answered)
    if other is not None:
        changed = differing(answered)
        document["against"] = {
            "ref": opposite.ref,
            "dtype": its_choice.dtype,
            "metrics": other.metrics,
            "differing": len(changed),
            "rows": [each.document() for each in changed[:_SHOWN_ROWS]],
        }
    if record:
        assert resolved.version is not None  # a path was refused
        version = resolved.version.ref
        kept = quality_record(result.metrics, metric, config, rows, split)
        document["recorded"] = opened.add_quality(version, kept)
        found = finding(kept.dtype, kept.device, opened.quality(version))
        if kept.dtype == REFERENCE:
            document["finding"] = "other dtypes are compared with it"
        else:
            document["finding"] = f"no record in {REFERENCE} to compare with" if found is None else found.why
    if as_json:
        print_json(document)
        return
    for name, value in result.metrics.items():
        beside = "" if other is None else f" ({other.metrics[name]:.2f} % by {opposite.ref})"
        result_console().print(f"{name.replace('_', ' ')}: {value:.2f} %{beside}", soft_wrap=True)
    if other is not None:
        _print_differing(changed, len(rows), resolved.ref, opposite.ref)
    if predictions is not None:
        progress_console().print(f"all answers: {predictions}", soft_wrap=True)
    if record:
        said = "recorded" if document["recorded"] else "already recorded, and the first record is kept"
        result_console().print(f"{choice.dtype}: {said}; {document['finding']}", soft_wrap=True)


def _print_differing(changed: "list[Prediction]", rows: int, ref: str, against: str) -> None:
    console = result_console()
    console.print(f"{len(changed)} of {rows} answers differ" + (", the greatest losses first:" if changed else ""))
    for each in changed[:_SHOWN_ROWS]:
        gain = "" if each.score is None else f" ({each.score - (each.against_score or 0.0):+.1f})"
        console.print(f"\n{each.source}{gain}", soft_wrap=True)
        console.print(f"  target   {each.targets[0]}", soft_wrap=True)
        console.print(f"  {against}: {each.against}", soft_wrap=True)
        console.print(f"  {ref}: {each.prediction}", soft_wrap=True)
    if len(changed) > _SHOWN_ROWS:
        console.print(f"\n{len(changed) - _SHOWN_ROWS} more: --predictions FILE writes all", soft_wrap=True)
