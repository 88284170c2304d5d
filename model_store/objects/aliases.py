"""The aliases of a model: names that move from version to version, each with its whole history.

A move is a new object under the next number, and the highest number counts. A rollback is a move too: it says which
move it undoes. What stands then is what stood before that one.
"""

import json
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from model_store.errors import CorruptStoreError, InvalidRequestError, NotFoundError
from model_store.objects import keys
from model_store.objects.numbered import check_risen, newest, numbered
from model_store.objects.times import now_text
from model_store.objects.versions import live_version, names_in
from model_store.storage.storage import Content, Entry, Storage, whole

MOST_REASON = 1000  # characters


@dataclass(frozen=True, kw_only=True)
class AliasMove:
    """One generation of an alias. From `at` (UTC, ISO) on it names `version`, or nothing if that is None."""

    generation: int
    version: int | None
    reason: str
    at: str
    undoes: int | None = None  # the generation that this one, a rollback, took back


def check_reason(reason: str | None) -> None:
    """Refuse a reason that would make a pointer too large.

    Raises:
        InvalidRequestError: it is too long.
    """
    if reason is not None and len(reason) > MOST_REASON:
        raise InvalidRequestError(f"the reason has {len(reason)} characters: at most {MOST_REASON}")


def alias_names(storage: Storage, name: str) -> list[str]:
    """All aliases that a model has ever had, sorted."""
    return names_in(storage, keys.aliases(name))


def read_alias(storage: Storage, name: str, alias: str) -> AliasMove | None:
    """The last move of an alias; None if there never was one.

    Raises:
        CorruptStoreError: it cannot be read.
    """
    last = newest(storage, keys.alias(name, alias))
    if last == 0:
        return None
    key = keys.generation(name, alias, last)
    return _parsed(storage, key, last, storage.read(key))


def named_versions(storage: Storage, name: str) -> dict[str, int]:
    """The version that each alias of a model names now, without those that name none.

    Raises:
        CorruptStoreError: an alias cannot be read.
    """
    moves = ((alias, read_alias(storage, name, alias)) for alias in alias_names(storage, name))
    return {alias: move.version for alias, move in moves if move is not None and move.version is not None}


def alias_version(storage: Storage, name: str, alias: str) -> int | None:
    """The version that an alias names; None if it names none or cannot be read: moving it repairs it."""
    move = _read_if_possible(storage, name, alias, newest(storage, keys.alias(name, alias)))
    return None if move is None else move.version


def history(storage: Storage, name: str, alias: str) -> dict[int, AliasMove | CorruptStoreError]:
    """Every move of an alias by its number, ascending, or why it cannot be read."""
    numbers = list(numbered(storage, keys.alias(name, alias)))
    read = [keys.generation(name, alias, number) for number in numbers]
    moves: dict[int, AliasMove | CorruptStoreError] = {}
    for number, key, data in zip(numbers, read, storage.read_all(read), strict=True):
        try:
            moves[number] = _parsed(storage, key, number, data)
        except CorruptStoreError as error:
            moves[number] = error
    return moves


def usable_versions(storage: Storage, name: str, named: Collection[int]) -> dict[int, Entry]:
    """The pointers of a model's live versions, and of those that aliases name (`named`) although they were removed.

    Who removed one of the latter died, or was held up, before seeing that an alias had been moved to it.
    """
    buried = numbered(storage, keys.tombstones(name)).keys() - set(named)
    known = numbered(storage, keys.versions(name))
    return {number: entry for number, entry in known.items() if number not in buried}


def move_alias(storage: Storage, name: str, alias: str, version: int | None, reason: str) -> None:
    """Point an alias at a version, or at none, unless it does already.

    Raises:
        NotFoundError: the version was removed meanwhile; the alias is then as it was.
    """
    while True:
        last = newest(storage, keys.alias(name, alias))
        move = _read_if_possible(storage, name, alias, last)
        if move is not None and move.version == version:
            return
        if _create(storage, name, alias, last + 1, version, reason):
            break
        check_risen(storage, keys.alias(name, alias), last)
    if version is not None and live_version(storage, name, version) is None:
        before = None if move is None else move.version
        why = f"{name}:{version} was removed meanwhile"
        _create(storage, name, alias, last + 2, before, why, undoes=last + 1)
        raise NotFoundError(f"{name}:{version} was removed meanwhile: {name}@{alias} stays as it was")


def first_move(storage: Storage, name: str, alias: str, version: int, reason: str) -> None:
    """Point an alias at a version if it never pointed anywhere and the version is live."""
    moved = newest(storage, keys.alias(name, alias)) == 0 and _create(storage, name, alias, 1, version, reason)
    if moved and live_version(storage, name, version) is None:
        _create(storage, name, alias, 2, None, f"{name}:{version} was removed meanwhile", undoes=1)


def roll_back(storage: Storage, name: str, alias: str, reason: str | None = None) -> AliasMove:
    """Take back the last move of an alias that is not itself taken back; return the new move.

    Raises:
        NotFoundError: there is no such alias.
        CorruptStoreError: its last move cannot be read, or one after that which would stand then.
        InvalidRequestError: nothing stood before that move, or what stood was removed, or the alias moved meanwhile.
    """
    found = history(storage, name, alias)
    moves = [move for move in found.values() if isinstance(move, AliasMove)]
    if not found:
        raise NotFoundError(f"model {name!r} has no alias {alias!r}: `nash models history {name}` lists what moved")
    undone = {move.undoes for move in moves}
    standing = [move for move in moves if move.undoes is None and move.generation not in undone]
    first_sure = standing[-2].generation if len(standing) > 1 else 0
    for number, move in found.items():
        if isinstance(move, CorruptStoreError) and number > first_sure:
            raise move  # it may be what has to be taken back, or what stood before
    if len(standing) < 2:
        raise InvalidRequestError(f"{name}@{alias} has nothing to go back to: its history begins where it is now")
    *_, before, last = standing
    if before.version is not None and live_version(storage, name, before.version) is None:
        raise InvalidRequestError(
            f"{name}@{alias} was {name}:{before.version} before, which was removed: "
            f"`nash models tag {name}:VERSION {alias}` points it to another"
        )
    reason = reason or f"rollback of move {last.generation}"
    number = max(found) + 1
    if not _create(storage, name, alias, number, before.version, reason, undoes=last.generation):
        raise InvalidRequestError(f"{name}@{alias} was moved by someone else at this moment: look, and try again")
    return AliasMove(generation=number, version=before.version, reason=reason, at=now_text(), undoes=last.generation)


def _read_if_possible(storage: Storage, name: str, alias: str, number: int) -> AliasMove | None:
    key = keys.generation(name, alias, number)
    try:
        return _parsed(storage, key, number, storage.read(key))
    except CorruptStoreError:
        return None


def _create(
    storage: Storage,
    name: str,
    alias: str,
    number: int,
    version: int | None,
    reason: str,
    *,
    undoes: int | None = None,
) -> bool:
    # The nonce makes a move unlike any other's, so that no two writers can both take it for theirs.
    fields: dict[str, Any] = {"version": version, "reason": reason, "at": now_text(), "nonce": uuid.uuid4().hex}
    if undoes is not None:
        fields["undoes"] = undoes
    return storage.create(keys.generation(name, alias, number), json.dumps(fields, sort_keys=True).encode("ascii"))


def _parsed(storage: Storage, key: str, number: int, data: Content) -> AliasMove:
    try:
        fields: Mapping[str, Any] = json.loads(whole(data))
        version, reason, at, undoes = fields["version"], fields["reason"], fields["at"], fields.get("undoes")
        numbers = all(value is None or (type(value) is int and value > 0) for value in (version, undoes))
        if not numbers or not isinstance(reason, str) or not isinstance(at, str):
            raise TypeError
        datetime.fromisoformat(at)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptStoreError(
            f"the alias pointer {storage.url}/{key} cannot be read: tag the alias again and delete this object"
        ) from None
    return AliasMove(generation=number, version=version, reason=reason, at=at, undoes=undoes)
