"""`nash models`: what is in the store, and putting models into it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model_store.manifest import Kind, Lineage
from model_store.store import Store, StoredVersion

app = typer.Typer(no_args_is_help=True, help="Publish models into the store, list them, name them, check them.")

StoreOption = Annotated[Path, typer.Option("--store", envvar="NASH_STORE", help="The folder that holds the store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
DEFAULT_STORE = Path("store")


@app.command("publish")
def publish(
    name: Annotated[str, typer.Argument(help="The model's NAME in the store.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A Hugging Face model directory.")],
    alias: Annotated[str | None, typer.Option(help="Point this alias at the version.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="Read from config.json where not given.")] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="REF", help="The stored version that this one was made from.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="The licence of the weights, as in Apache-2.0.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Store a model directory as the next version of NAME."""
    target = Store(store)
    lineage = Lineage(parent=None if parent is None else target.resolve(parent).digest)
    done = target.publish(name, directory, kind=kind, alias=alias, lineage=lineage, licence=licence)
    if as_json:
        _print_json({"name": done.name, "version": done.version, "digest": done.digest, "created": done.created})
        return
    what = "published as" if done.created else "was there already as"
    _console().print(f"{escape(str(directory))} {what} [bold]{done.name}:{done.version}[/bold] ({done.digest[:12]})")


@app.command("ls")
def list_versions(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List all versions of all models."""
    versions = Store(store).list()
    if as_json:
        _print_json([_summary(version) for version in versions])
        return
    table = Table("ref", "aliases", "kind", "layers", "parameters", "MB", "metrics", "created", "digest")
    for version in versions:
        manifest = version.manifest
        table.add_row(
            version.ref,
            ", ".join(version.aliases),
            manifest.kind,
            f"{manifest.spec.encoder_layers} + {manifest.spec.decoder_layers}",
            f"{manifest.spec.parameters:,}",
            f"{manifest.spec.bytes / 1e6:.1f}",
            escape(", ".join(f"{name} {value:g}" for name, value in sorted(manifest.metrics.items()))),
            version.created_at,
            version.digest[:12],
        )
    _console().print(table)


@app.command("show")
def show(
    ref: Annotated[str, typer.Argument(metavar="REF", help="NAME, NAME@ALIAS or NAME:VERSION.")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show one version: its files, shape and lineage."""
    version = Store(store).resolve(ref)
    manifest = version.manifest.model_dump(mode="json")
    details = {key: manifest[key] for key in ("files", "spec", "lineage", "licence")}
    if as_json:
        _print_json(_summary(version) | details)
        return
    table = Table("field", "value", title=version.ref, show_header=False)
    for key, value in (_summary(version) | details["spec"] | details["lineage"]).items():
        table.add_row(key, escape(value if isinstance(value, str) else json.dumps(value)))
    files = Table("file", "bytes", "sha256")
    for file in version.manifest.files:
        files.add_row(file.path, f"{file.size:,}", file.sha256[:12])
    _console().print(table, files)


@app.command("tag")
def tag(
    ref: Annotated[str, typer.Argument(metavar="REF", help="NAME, NAME@ALIAS or NAME:VERSION.")],
    alias: Annotated[str, typer.Argument(help="The alias that shall name this version.")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Point an alias at a version."""
    version = Store(store).tag(ref, alias)
    if as_json:
        _print_json(_summary(version))
        return
    _console().print(f"{version.name}@{alias} is now [bold]{version.ref}[/bold]")


@app.command("verify")
def verify(
    ref: Annotated[str | None, typer.Argument(metavar="[REF]", help="One version; all where left out.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Read every stored byte and name the bad files; exit code 1 where there are any."""
    problems = Store(store).verify(ref)
    if as_json:
        _print_json({"problems": [{"ref": p.ref, "file": p.file, "what": p.what} for p in problems]})
    elif problems:
        table = Table("ref", "file", "what is wrong")
        for problem in problems:
            table.add_row(problem.ref, problem.file, escape(problem.what))
        _console().print(table)
    else:
        _console().print("every file is what was published")
    if problems:
        raise typer.Exit(1)


def _summary(version: StoredVersion) -> dict[str, Any]:
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


def _print_json(document: object) -> None:
    typer.echo(json.dumps(document, indent=2))


def _console() -> Console:
    return Console(highlight=False, soft_wrap=False)
