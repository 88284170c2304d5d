"""`nash models`: list what is in the store, and publish models into it."""

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from model_store.model.model import Model
from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json, progress_console, result_console

if TYPE_CHECKING:
    from model_store.store import Store, StoredVersion

RefArgument = Annotated[str, typer.Argument(metavar="REF", help="NAME, NAME@ALIAS or NAME:VERSION.")]

app = typer.Typer(no_args_is_help=True, help="Publish, list, tag and verify models in the store.")


@app.command("publish")
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
    from model_store.version.manifest import Lineage
    from model_store.version.ref import check_name
    from nash.checkpoints.folder import can_be_completed
    from nash.checkpoints.hub import names_a_hub_model

    target = _open(store)
    lineage = Lineage(parent=None if parent is None else target.resolve(parent).digest)
    with ExitStack() as stack:
        folder = Path(directory)
        if names_a_hub_model(directory) or can_be_completed(folder):
            check_name(name, "model name")
            target.check_writable()

            from nash.checkpoints.opening import open_model

            place = directory if names_a_hub_model(directory) else str(folder.absolute())
            found = stack.enter_context(open_model(place, target))
            folder, lineage = found.model.folder, lineage.model_copy(update={"trained_from": found.origin})
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
        done = target.publish(name, folder, kind=kind, alias=alias, lineage=lineage, licence=licence)
    if as_json:
        print_json({"name": done.name, "version": done.version, "digest": done.digest, "created": done.created})
        return
    what = "published as" if done.created else "is already stored as"
    _say(f"{directory} {what} {done.name}:{done.version} (digest {done.digest[:12]})")


@app.command("ls")
def list_versions(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List all versions of all models."""
    versions = _open(store).list()
    if as_json:
        print_json([_summary(version) for version in versions])
        return
    rows = [
        (
            version.ref,
            ", ".join(version.aliases),
            f"{version.manifest.spec.encoder_layers} + {version.manifest.spec.decoder_layers}",
            f"{version.manifest.spec.parameters / 1e6:.2f} M",
            f"{version.manifest.spec.bytes / 1e6:.1f}",
            "\n".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in sorted(version.manifest.metrics.items())),
            version.created_at[:10],
        )
        for version in versions
    ]
    _print_table(("ref", "aliases", "layers", "weights", "MB", "metrics", "created"), rows)


@app.command("show")
def show(
    ref: RefArgument,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show one version: its files, shape and lineage."""
    version = _open(store).resolve(ref)
    manifest = version.manifest.model_dump(mode="json")
    details = {key: manifest[key] for key in ("files", "spec", "lineage", "licence")}
    if as_json:
        print_json(_summary(version) | details)
        return
    fields = _summary(version) | details["spec"] | details["lineage"] | {"licence": details["licence"]}
    _print_table(
        (version.ref, ""),
        [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in fields.items()],
    )
    _print_table(
        ("file", "bytes", "sha256"),
        [(file.path, f"{file.size:,}", file.sha256) for file in version.manifest.files],
    )


@app.command("tag")
def tag(
    ref: RefArgument,
    alias: Annotated[str, typer.Argument(help="The alias to point at this version.")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Point an alias at a version."""
    version = _open(store).tag(ref, alias)
    if as_json:
        print_json(_summary(version))
        return
    _say(f"{version.name}@{alias} is now {version.ref}")


@app.command("verify")
def verify(
    ref: Annotated[str | None, typer.Argument(metavar="[REF]", help="One version. Default: all.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Read every stored byte and name the bad files; exit with code 1 if there are any."""
    problems = _open(store).verify(ref)
    if as_json:
        print_json({"problems": [{"ref": p.ref, "file": p.file, "what": p.what} for p in problems]})
    elif problems:
        _print_table(("ref", "file", "what is wrong"), [(p.ref, p.file, p.what) for p in problems])
    else:
        _say("every file is as published")
    if problems:
        raise typer.Exit(1)


def _open(folder: Path) -> "Store":
    from model_store.store import Store

    return Store(folder)


def _summary(version: "StoredVersion") -> dict[str, Any]:
    manifest = version.manifest
    return {
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "kind": manifest.kind,
        "aliases": list(version.aliases),
        "parameters": manifest.spec.parameters,
        "bytes": manifest.spec.bytes,
        "parent": manifest.lineage.parent,
        "metrics": manifest.metrics,
        "created_at": version.created_at,
    }


def _say(text: str) -> None:
    result_console().print(text, markup=False, soft_wrap=True)


def _print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    result_console().print(table)
