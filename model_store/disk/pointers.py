"""The small files that name things: version numbers, alias generations, tombstones.

None is ever changed or deleted. A new one is created under the next free number; the file system decides which of
several writers gets it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from model_store.disk.files import link_if_absent, make_folder, write_new
from model_store.disk.paths import Paths, number_name, parse_number
from model_store.errors import CorruptStoreError, InvalidRequestError, NotFoundError
from model_store.version.ref import MEANT_BY_A_NAME, Ref, check_name

_DIGEST = re.compile(rb"([0-9a-f]{64})\n")


@dataclass(frozen=True, kw_only=True)
class AliasMove:
    """One generation of an alias, which names `version` from `at` (UTC, ISO) on."""

    version: int
    reason: str
    at: str


def utc_text(seconds_since_epoch: float) -> str:
    """A point in time as ISO text in UTC, to the second."""
    return datetime.fromtimestamp(seconds_since_epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def model_names(paths: Paths) -> list[str]:
    """The names of all models of a store, sorted; empty if there is no store yet."""
    return [name for name in _entries(paths.models) if paths.versions(name).is_dir()]


def alias_names(paths: Paths, name: str) -> list[str]:
    """All aliases that a model has ever had, sorted."""
    return _entries(paths.aliases(name))


def live_versions(paths: Paths, name: str) -> list[int]:
    """The version numbers of a model, ascending, without those that have a tombstone."""
    numbers = _numbers(paths.versions(name))
    return [number for number in numbers if not paths.tombstone(name, number).exists()]


def read_version(paths: Paths, name: str, version: int) -> str:
    """The manifest digest that a version names.

    Raises:
        CorruptStoreError: the pointer does not hold a digest.
    """
    path = paths.version(name, version)
    match = _DIGEST.fullmatch(path.read_bytes())
    if match is None:
        raise CorruptStoreError(f"the version pointer {path} does not hold a digest: publish the model again")
    return match[1].decode()


def commit_version(paths: Paths, name: str, alias: str | None, digest: str, tmp: Path) -> tuple[int, bool]:
    """Make `digest` the newest version of a model, unless the newest version or the one that `alias` names has it.

    Returns the version's number, and whether it is new.
    """
    aliased = None if alias is None else _alias_version(paths, name, alias)
    if aliased is not None and _is_live_with(paths, name, aliased, digest):
        return aliased, False
    make_folder(paths.versions(name))
    pointer = tmp / "version"
    write_new(pointer, f"{digest}\n".encode())
    while True:
        newest = max(_numbers(paths.versions(name)), default=0)
        if newest and _is_live_with(paths, name, newest, digest):
            return newest, False
        if link_if_absent(pointer, paths.version(name, newest + 1)):
            return newest + 1, True


def _is_live_with(paths: Paths, name: str, version: int, digest: str) -> bool:
    if paths.tombstone(name, version).exists():
        return False
    try:
        return read_version(paths, name, version) == digest
    except CorruptStoreError:
        return False  # an unreadable pointer must not block the publish that replaces it


def read_alias(paths: Paths, name: str, alias: str) -> AliasMove | None:
    """Where an alias points now; None if the alias never existed.

    Raises:
        CorruptStoreError: its newest generation cannot be read.
    """
    generation = max(_numbers(paths.alias(name, alias)), default=0)
    if generation == 0:
        return None
    path = paths.alias(name, alias) / number_name(generation)
    try:
        fields = json.loads(path.read_bytes())
        version, reason, at = fields["version"], fields["reason"], fields["at"]
        if type(version) is not int or not isinstance(reason, str) or not isinstance(at, str):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptStoreError(f"the alias pointer {path} cannot be read: tag the alias again") from None
    return AliasMove(version=version, reason=reason, at=at)


def move_alias(paths: Paths, name: str, alias: str, version: int, reason: str, tmp: Path) -> None:
    """Point an alias at a version, by a new generation unless it already names that version."""
    folder = paths.alias(name, alias)
    make_folder(folder)
    pointer = tmp / "alias"
    move = {"version": version, "reason": reason, "at": utc_text(datetime.now(UTC).timestamp())}
    write_new(pointer, json.dumps(move, sort_keys=True).encode("ascii"))
    while True:
        newest = max(_numbers(folder), default=0)
        if newest and _alias_version(paths, name, alias) == version:
            return
        if link_if_absent(pointer, folder / number_name(newest + 1)):
            return


def _alias_version(paths: Paths, name: str, alias: str) -> int | None:
    try:
        move = read_alias(paths, name, alias)
    except CorruptStoreError:
        return None  # moving the alias repairs such a pointer
    return None if move is None else move.version


def find_version(paths: Paths, ref: Ref) -> int:
    """The version number a reference names now. A bare name means its alias `default`, else `dense`, else the oldest.

    The oldest, because a name is published dense first; the newest could be anything that was pruned from it since.

    Raises:
        NotFoundError: there is no such name, alias or version, or it was removed.
        CorruptStoreError: the alias cannot be read.
    """
    live = live_versions(paths, ref.name)
    if not live:
        raise NotFoundError(f"model {ref.name!r} is not in the store {paths.root}: `nash models ls` lists what is")
    version = ref.version
    if version is None and ref.alias is None:
        moves = (read_alias(paths, ref.name, alias) for alias in MEANT_BY_A_NAME)
        version = next((move.version for move in moves if move is not None), live[0])
    elif version is None:
        move = read_alias(paths, ref.name, ref.alias or "")
        if move is None:
            known = _listed(alias_names(paths, ref.name))
            raise NotFoundError(f"model {ref.name!r} has no alias {ref.alias!r}: it has {known}")
        version = move.version
    if version not in live:
        raise NotFoundError(f"model {ref.name!r} has no version {version}: it has {_listed(live)}")
    return version


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values) or "none"


def _numbers(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    numbers = (parse_number(path.name) for path in folder.iterdir())
    return sorted(number for number in numbers if number is not None)


def _entries(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if _is_name(path.name))


def _is_name(text: str) -> bool:
    try:
        check_name(text, "name")
    except InvalidRequestError:
        return False
    return True
