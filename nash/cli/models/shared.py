"""What the commands of the store share: its arguments, one version as a document, sizes, ages and tables."""

import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nash.cli.output import DEFAULT_STORE, progress_console, result_console

if TYPE_CHECKING:
    from model_store.store import Store, StoredVersion


def open_store(store: str) -> "Store":
    """The store of an option."""
    from model_store.store import Store

    return Store(store)


def complete_ref(context: typer.Context, incomplete: str) -> list[str]:
    """The REFs of a store that begin with what was typed, for the shell."""
    try:
        versions = open_store(context.params.get("store") or DEFAULT_STORE).list(unreadable=lambda _: None)
    except Exception:  # noqa: BLE001  whatever is wrong, a completion only stays silent
        return []
    known = {version.name for version in versions} | {version.ref for version in versions}
    known |= {f"{version.name}@{alias}" for version in versions for alias in version.aliases}
    return sorted(ref for ref in known if ref.startswith(incomplete))


def complete_name(context: typer.Context, incomplete: str) -> list[str]:
    """The names of a store's models that begin with what was typed, for the shell."""
    return sorted({ref.partition("@")[0].partition(":")[0] for ref in complete_ref(context, incomplete)})


RefArgument = Annotated[
    str,
    typer.Argument(
        metavar="REF", help="NAME, NAME@ALIAS, NAME:VERSION or NAME@sha256:DIGEST.", autocompletion=complete_ref
    ),
]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The model's name in the store.", autocompletion=complete_name)
]
AliasArgument = Annotated[str, typer.Argument(metavar="ALIAS", help="The alias.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the history.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def summary(version: "StoredVersion") -> dict[str, Any]:
    """One version as a document."""
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


def say(text: str) -> None:
    """One line of a result."""
    result_console().print(_printable(text), markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """One line about what is wrong beside the result."""
    progress_console().print(_printable(text), markup=False, soft_wrap=True)


def size_text(size_bytes: int) -> str:
    """A size that people can compare: three digits and a decimal unit."""
    value, units = float(size_bytes), ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if value < 999.5 or unit == units[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.3g} {unit}"


def age_text(created_at: str) -> str:
    """How long ago a point in time (UTC, ISO) was, in its largest unit; nothing where there is none."""
    if not created_at:
        return ""
    seconds = max(0.0, time.time() - datetime.fromisoformat(created_at).timestamp())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> None:
    """A table for people; cells may have several lines. `right` are the headings of columns of numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold", justify="right" if heading in right else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    result_console().print(table)


def print_columns(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Plain columns: fast for thousands of rows, and easy to search and cut."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    sides = [">" if heading in right else "<" for heading in headings]
    line = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    print("\n".join(_printable(line.format(*row).rstrip()) for row in (headings, *rows)))


def _printable(text: str) -> str:
    """A text that cannot move the cursor: what a store holds may come from anybody."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
