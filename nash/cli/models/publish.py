"""`nash models publish` and `import`: bring a model into the store."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from model_store.model.model import Model
from nash.cli.models.shared import ReasonOption, open_store, say
from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json, progress_console


def publish(
    name: Annotated[str, typer.Argument(help="The model's NAME in the store.")],
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="A Hugging Face model directory, or hub:OWNER/NAME[@REVISION].")
    ],
    alias: Annotated[str | None, typer.Option(help="Point this alias at the version.")] = None,
    kind: Annotated[Literal["dense", "pruned"] | None, typer.Option(help="Default: read from config.json.")] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="REF", help="The stored version that this one was made from.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="The licence of the weights, such as Apache-2.0.")] = None,
    reason: ReasonOption = None,
    calibrate_int4: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA", help="Rows of the model's task: also store its layers in four bits, for dtype int4."
        ),
    ] = None,
    source_column: Annotated[str, typer.Option(help="The column of the sources in those rows.")] = "source",
    target_column: Annotated[str, typer.Option(help="The column of the targets.")] = "target",
    prefix: Annotated[str, typer.Option(help="Text to put before every source.")] = "",
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Store a model directory as the next version of NAME."""
    from msgspec.structs import replace

    from model_store.version.manifest import Lineage
    from model_store.version.ref import check_name
    from nash.checkpoints.folder import can_be_completed
    from nash.checkpoints.hub import names_a_hub_model

    target = open_store(store)
    lineage = Lineage(parent=None if parent is None else target.resolve(parent).digest)
    with ExitStack() as stack:
        folder = Path(directory)
        if names_a_hub_model(directory) or can_be_completed(folder):
            check_name(name, "model name")
            target.check_writable()

            from nash.checkpoints.opening import open_model

            place = directory if names_a_hub_model(directory) else str(folder.absolute())
            found = stack.enter_context(open_model(place, target))
            folder, lineage = found.model.folder, replace(lineage, trained_from=found.origin)
        if calibrate_int4 is not None:
            from nash.preflight import check_files, check_rows
            from nash.recipes.recipe import DataLayout

            layout = DataLayout(source_column=source_column, target_columns=[target_column], prefix=prefix)
            check_rows(calibrate_int4, layout)
            check_files(Model.open(folder))
            target.check_writable()

            from nash.data.rows import RowFile
            from nash.int4.calibration import calibrated_copy
            from nash.modeling.folders import quiet_libraries

            quiet_libraries()
            original, folder = folder, stack.enter_context(target.work_folder())
            calibrated_copy(original, RowFile(calibrate_int4, layout), folder, progress_console())
        done = target.publish(
            name, folder, kind=kind, alias=alias, lineage=lineage, licence=licence, reason=reason or "publish"
        )
    if as_json:
        print_json({"name": done.name, "version": done.version, "digest": done.digest, "created": done.created})
        return
    what = "published as" if done.created else "is already stored as"
    say(f"{directory} {what} {done.name}:{done.version} (digest {done.digest[:12]})")


def import_model(
    place: Annotated[str, typer.Argument(metavar="PATH", help="A model's folder, or hub:OWNER/NAME[@REVISION].")],
    name: Annotated[
        str | None, typer.Option("--name", help="The NAME in the store. Default: the last part of PATH.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Point this alias at the version.")] = None,
    licence: Annotated[str | None, typer.Option(help="The licence of the weights, such as Apache-2.0.")] = None,
    reason: ReasonOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Store a model from elsewhere: shards, SentencePiece tokenizers and the hub's models too, its own files only."""
    from model_store.version.ref import check_name
    from nash.checkpoints.folder import locate
    from nash.checkpoints.importing import check_no_pickles, importable, suggested_name

    name = check_name(name or suggested_name(place), "model name")
    target = open_store(store)
    check_no_pickles(place)
    locate(place, target)  # before the store is made, and before libraries that take seconds are loaded
    target.check_writable()

    from model_store.version.manifest import Lineage
    from nash.modeling.folders import quiet_libraries

    quiet_libraries()
    with importable(place, target) as (found, folder):
        lineage = Lineage(trained_from=found.origin)
        done = target.publish(name, folder, alias=alias, lineage=lineage, licence=licence, reason=reason or "import")
    if as_json:
        print_json({"name": done.name, "version": done.version, "digest": done.digest, "created": done.created})
        return
    what = "imported as" if done.created else "is already stored as"
    say(f"{place} {what} {done.name}:{done.version} (digest {done.digest[:12]})")
