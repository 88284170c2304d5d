"""`nash models ls` and `show`."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from nash.cli.models.shared import (
    RefArgument,
    age_text,
    open_store,
    print_columns,
    print_table,
    size_text,
    summary,
    warn,
)
from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json

if TYPE_CHECKING:
    from model_store.store import StoredVersion


def list_versions(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List all versions of all models; exit with code 1 if one cannot be read."""
    from model_store.collector import collector_paused

    with collector_paused():
        _list_versions(store, as_json=as_json)


def _list_versions(store: str, *, as_json: bool) -> None:
    unreadable: list[str] = []
    versions = open_store(store).list(unreadable=unreadable.append)
    if as_json:
        print_json([summary(version) for version in versions])
    elif versions:
        _print_versions(versions)
    elif not unreadable:
        print(f"{store} has no models: `nash models publish NAME DIR` adds one")
    for why in unreadable:
        warn(why)
    if unreadable:
        raise typer.Exit(1)


def _print_versions(versions: Sequence["StoredVersion"]) -> None:
    rows = []
    for version in versions:
        spec = version.manifest.spec
        rows.append(
            (
                version.ref,
                ",".join(version.aliases),
                version.manifest.kind,
                f"{spec.encoder_layers}+{spec.decoder_layers}",
                f"{spec.parameters / 1e6:.2f} M",
                size_text(spec.bytes),
                ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in sorted(version.manifest.metrics.items())),
                age_text(version.created_at),
            )
        )
    headings = ("REF", "ALIASES", "KIND", "LAYERS", "WEIGHTS", "SIZE", "METRICS", "CREATED")
    print_columns(headings, rows, right=("LAYERS", "WEIGHTS", "SIZE"))


def show(ref: RefArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show one version: its files, shape, lineage and measurements."""
    opened = open_store(store)
    version = opened.resolve(ref)
    manifest = version.manifest.document()
    details = {key: manifest[key] for key in ("files", "spec", "lineage", "licence", "measured_on")}
    records = opened.records(version.ref)
    if as_json:
        print_json(summary(version) | details | {"measurements": list(records)})
        return
    fields = summary(version) | details["spec"] | details["lineage"]
    fields |= {"licence": details["licence"], "measured_on": details["measured_on"]}
    print_table(
        (version.ref, ""),
        [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in fields.items()],
    )
    print_table(
        ("file", "size", "sha256"),
        [(file.path, size_text(file.size), file.sha256) for file in version.manifest.files],
        right=("size",),
    )
    if records:
        print_table(("measured", "where", "figure"), [_record_row(record) for record in records])


def _record_row(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """One measurement in a line of three cells."""
    from model_store.version.latency import LatencyRecord

    latency = LatencyRecord.of(record)
    match record["kind"]:
        case "quality":
            figure = f"{record['metric'].replace('_', ' ')} {record['value']:.2f} %"
            figure += f", {record['rows']} rows of {record['split']}"
            return f"quality in {record['dtype']}", f"{record['engine']} on {record['device']}", figure
        case _ if latency is not None:
            what = f"latency in {latency.dtype}, batch {latency.batch}"
            what += f", {latency.source_tokens} in, {latency.new_tokens} out"
            where = f"{latency.processor}, {latency.threads} threads"
            figure = f"{latency.encode_ms:.2f} + {latency.step_ms:.3f} a step = {latency.total_ms:.2f} ms"
            return what, where, figure
        case other:
            return str(other), "", json.dumps(dict(record))[:200]
