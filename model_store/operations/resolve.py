"""Which version a reference names now."""

from contextlib import suppress
from typing import NoReturn

from model_store.errors import CorruptStoreError, NotFoundError
from model_store.objects import keys
from model_store.objects.aliases import alias_names, alias_version, read_alias, usable_versions
from model_store.objects.numbered import ranges
from model_store.objects.versions import live_version, live_versions, parse_version
from model_store.storage.storage import Storage
from model_store.version.ref import MEANT_BY_A_NAME, Ref


def find_version(storage: Storage, ref: Ref) -> int:
    """The version number a reference names now. A bare name means its alias `default`, else `dense`, else the oldest.

    The oldest, because a name is published dense first; the newest could be anything that was pruned from it since.

    Raises:
        NotFoundError: there is no such name, alias or version, or it was removed.
        CorruptStoreError: the alias cannot be read.
    """
    number = _named(storage, ref)
    if number is None or not _is_usable(storage, ref.name, number):
        _refuse(storage, ref, number)
    return number


def _is_usable(storage: Storage, name: str, number: int) -> bool:
    """As `usable_versions`, without listing them."""
    if live_version(storage, name, number) is not None:
        return True
    named = number in (alias_version(storage, name, alias) for alias in alias_names(storage, name))
    return named and storage.stat(keys.version(name, number)) is not None


def _named(storage: Storage, ref: Ref) -> int | None:
    if ref.version is not None:
        return ref.version
    if ref.digest is not None:
        return _with_digest(storage, ref.name, ref.digest)
    for alias in MEANT_BY_A_NAME if ref.alias is None else (ref.alias,):
        move = read_alias(storage, ref.name, alias)
        if move is not None and move.version is not None:
            return move.version
    return None if ref.alias is not None else next(iter(live_versions(storage, ref.name)), None)


def _with_digest(storage: Storage, name: str, digest: str) -> int | None:
    """The oldest version of this content; a pointer that cannot be read is no match."""
    named = (alias_version(storage, name, alias) for alias in alias_names(storage, name))
    usable = list(usable_versions(storage, name, [number for number in named if number is not None]))
    pointers = [keys.version(name, number) for number in usable]
    for number, key, data in zip(usable, pointers, storage.read_all(pointers), strict=True):
        with suppress(CorruptStoreError):
            if parse_version(storage, key, data) == digest:
                return number
    return None


def _refuse(storage: Storage, ref: Ref, number: int | None) -> NoReturn:
    live = live_versions(storage, ref.name)
    if not live:
        raise NotFoundError(f"model {ref.name!r} is not in the store {storage.url}: `nash models ls` lists what is")
    if ref.digest is not None:
        raise NotFoundError(
            f"model {ref.name!r} has no version with the digest {ref.digest}: `nash models ls --json` lists them"
        )
    if number is None:
        known = ", ".join(alias_names(storage, ref.name)) or "none"
        raise NotFoundError(f"model {ref.name!r} has no alias {ref.alias!r}: it has {known}")
    raise NotFoundError(f"model {ref.name!r} has no version {number}: it has {ranges(list(live))}")
