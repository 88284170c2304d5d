"""`nash models push` and `pull`: copy a version between two stores."""

import math
from typing import Annotated

import typer

from nash.cli.models.shared import ReasonOption, RefArgument, open_store, say, warn
from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json, progress_console

OtherStore = Annotated[str, typer.Argument(metavar="STORE", help="The other store: a folder, or s3://BUCKET/PREFIX.")]
AliasOption = Annotated[str | None, typer.Option("--alias", help="Point this alias at the version there.")]


def push(
    ref: RefArgument,
    other: OtherStore,
    alias: AliasOption = None,
    reason: ReasonOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Copy a version from this store to another. What was interrupted goes on when it is called again."""
    _copy(ref, store, other, alias, reason or "push", as_json=as_json)


def pull(
    ref: RefArgument,
    other: OtherStore,
    alias: AliasOption = None,
    reason: ReasonOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Copy a version of another store into this one. What was interrupted goes on when it is called again."""
    _copy(ref, other, store, alias, reason or "pull", as_json=as_json)


def _copy(ref: str, source: str, target: str, alias: str | None, reason: str, *, as_json: bool) -> None:
    from nash.errors import RequestError
    from nash.run.progress import Stage

    opened, other = open_store(source), open_store(target)
    if opened.is_same_place(other):
        raise RequestError(f"{other.url} is the store that {ref} is in: name another one")
    version = opened.resolve(ref)
    total = math.ceil(version.manifest.stored_bytes / 1e6)
    with Stage(f"copying {version.ref} to {other.url}", progress_console(), total, unit="MB") as stage:
        moved = 0

        def progress(count: int) -> None:
            nonlocal moved
            moved += count
            stage.update(min(math.ceil(moved / 1e6), total))

        done = opened.copy_to(other, version.ref, alias=alias, reason=reason, progress=progress, warn=warn)
    if as_json:
        named = {"name": done.name, "version": done.version, "digest": done.digest, "created": done.created}
        print_json(named | {"store": other.url})
        return
    what = "is now" if done.created else "is already"
    say(f"{version.ref} of {opened.url} {what} {done.name}:{done.version} of {other.url}")
