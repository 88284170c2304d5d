"""`nash models verify`, `rm` and `gc`."""

from typing import TYPE_CHECKING, Annotated

import typer

from nash.cli.models.shared import (
    ReasonOption,
    RefArgument,
    YesOption,
    open_store,
    print_columns,
    print_table,
    say,
    size_text,
)
from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json, progress_console

if TYPE_CHECKING:
    from model_store.store import Store


def verify(
    ref: Annotated[str | None, typer.Argument(metavar="[REF]", help="One version. Default: all.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Read every stored byte and name the bad files; exit with code 1 if there are any."""
    console = progress_console()
    problems = _existing(store).verify(ref, say=lambda checked: console.print(f"read {checked}", soft_wrap=True))
    if as_json:
        print_json({"problems": [{"ref": p.ref, "file": p.file, "what": p.what} for p in problems]})
    elif problems:
        print_table(("ref", "file", "what is wrong"), [(p.ref, p.file, p.what) for p in problems])
    else:
        say("every file is as published")
    if problems:
        raise typer.Exit(1)


def remove(
    ref: RefArgument,
    yes: YesOption = False,
    reason: ReasonOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Remove a version, given by its number, that no alias names. `gc` frees its space later."""
    opened = open_store(store)
    if not yes:
        planned = opened.removable(ref)
        size = "of unknown size" if planned.size is None else size_text(planned.size)
        _ask(f"remove {planned.ref} ({size}) from {store}? It cannot be brought back")
    removed = opened.remove(ref, reason or "rm")
    if as_json:
        print_json({"name": removed.name, "version": removed.version, "digest": removed.digest})
        return
    say(f"{removed.ref} is removed: `nash models gc` frees what only it needed")


def collect(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would go, and how many bytes.")] = False,
    older_than: Annotated[
        float,
        typer.Option(
            "--older-than",
            metavar="HOURS",
            min=0.0,
            help="Take only what is older. Below 24, nobody may be publishing meanwhile.",
        ),
    ] = 24.0,
    yes: YesOption = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Free what no version needs: blobs of removed versions, and what killed processes left."""
    opened, console = _existing(store), progress_console()
    grace_s = older_than * 3600
    if not (dry_run or yes):
        planned = opened.collect(dry_run=True, grace_seconds=grace_s)
        if planned:
            _ask(f"delete {len(planned)} things ({size_text(sum(each.size for each in planned))}) from {store}?")
    found = opened.collect(
        dry_run=dry_run, say=lambda step: console.print(step, soft_wrap=True, markup=False), grace_seconds=grace_s
    )
    size = sum(each.size for each in found)
    waiting = [each for each in found if not each.deleted]
    if as_json:
        things = [{"kind": each.kind, "name": each.name, "bytes": each.size, "deleted": each.deleted} for each in found]
        print_json({"dry_run": dry_run, "bytes": size, "things": things})
        return
    if dry_run and found:
        rows = [(each.kind, each.name, size_text(each.size)) for each in found]
        print_columns(("KIND", "NAME", "SIZE"), rows, right=("SIZE",))
    did = "would go" if dry_run else "went"
    say(f"{len(found)} things {did}, {size_text(size)}")
    if waiting:
        say(f"{len(waiting)} of them wait in quarantine: a collection after {older_than:g} hours deletes them")


def _existing(store: str) -> "Store":
    """The store, unless there is none: a misspelt place must not look as if all were well with it."""
    from model_store.errors import NotFoundError

    opened = open_store(store)
    if not opened.exists():
        raise NotFoundError(f"there is no store at {store}: check --store and NASH_STORE")
    return opened


def _ask(question: str) -> None:
    """Go on only if a person says yes; without a terminal there is none, so it says how."""
    import sys

    from nash.errors import RequestError

    if not sys.stdin.isatty():
        raise RequestError(f"{question}: say --yes, as nobody can be asked here")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)
