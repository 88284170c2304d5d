"""`nash models tag`, `untag`, `rollback` and `history`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from nash.cli.models.shared import (
    AliasArgument,
    NameArgument,
    ReasonOption,
    RefArgument,
    age_text,
    open_store,
    print_columns,
    say,
    summary,
    warn,
)
from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model_store.objects.aliases import AliasMove
    from model_store.objects.versions import Burial


def tag(
    ref: RefArgument,
    alias: AliasArgument,
    reason: ReasonOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Point an alias at a version."""
    version = open_store(store).tag(ref, alias, reason or "tag")
    if as_json:
        print_json(summary(version))
        return
    say(f"{version.name}@{alias} is now {version.ref}")


def untag(
    name: NameArgument,
    alias: AliasArgument,
    reason: ReasonOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Let an alias name nothing; `rollback` brings it back."""
    open_store(store).untag(name, alias, reason or "untag")
    if as_json:
        print_json({"name": name, "alias": alias, "version": None})
        return
    say(f"{name}@{alias} names nothing now: `nash models rollback {name} {alias}` takes that back")


def rollback(
    name: NameArgument,
    alias: AliasArgument,
    reason: ReasonOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Take back an alias's last move. Done twice, it goes two moves back."""
    move = open_store(store).rollback(name, alias, reason)
    if as_json:
        print_json({"name": name, "alias": alias, **asdict(move)})
        return
    stands = "names nothing again" if move.version is None else f"is {name}:{move.version} again"
    say(f"{name}@{alias} {stands}: move {move.undoes} was taken back")


def history(
    name: NameArgument,
    alias: Annotated[str | None, typer.Argument(metavar="[ALIAS]", help="One alias. Default: all.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List every move of a model's aliases, the first one first, and what was removed."""
    opened = open_store(store)
    unreadable: list[str] = []
    moves = opened.history(name, alias, unreadable=unreadable.append)
    removed = opened.removed(name) if alias is None else []
    if as_json:
        documents = [{"alias": each, **asdict(move)} for each, known in moves.items() for move in known]
        print_json(documents + [{"alias": None, "removed": True, **asdict(each)} for each in removed])
    else:
        _print_history(name, moves, removed)
    for why in unreadable:
        warn(why)
    if unreadable:
        raise typer.Exit(1)


def _print_history(name: str, moves: "Mapping[str, Sequence[AliasMove]]", removed: "Sequence[Burial]") -> None:
    rows = [
        (
            f"{name}@{each}",
            str(move.generation),
            "nothing" if move.version is None else f"{name}:{move.version}",
            move.reason,
            move.at,
            age_text(move.at),
        )
        for each, known in moves.items()
        for move in known
    ]
    rows += [("", "", f"{name}:{each.version} removed", each.reason, each.at, age_text(each.at)) for each in removed]
    print_columns(("ALIAS", "MOVE", "NAMES", "REASON", "AT", "AGE"), rows, right=("MOVE",))
