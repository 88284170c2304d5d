"""The versions of a model: pointers to manifests under ascending numbers, and the tombstones of those removed.

A number is given once and never again. The storage decides which of several publishers gets it.
"""

import json
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass

from model_store.errors import CorruptStoreError, InvalidRequestError
from model_store.objects import keys
from model_store.objects.numbered import check_risen, newest, numbered
from model_store.objects.times import now_text
from model_store.storage.storage import Content, Entry, Storage, whole
from model_store.version.ref import check_name

_DIGEST = re.compile(rb"([0-9a-f]{64})\n")


def model_names(storage: Storage) -> list[str]:
    """The names of all models of a store, sorted; empty if there is no store yet."""
    return names_in(storage, keys.MODELS)


def names_in(storage: Storage, folder: str) -> list[str]:
    """The folders of a folder whose names are legal, sorted."""
    return [name for name in storage.folders(folder) if _is_name(name)]


def live_versions(storage: Storage, name: str) -> dict[int, Entry]:
    """The pointers of a model's versions without those that were removed, ascending."""
    known = numbered(storage, keys.versions(name))
    for number in numbered(storage, keys.tombstones(name)):
        known.pop(number, None)
    return known


def live_version(storage: Storage, name: str, number: int) -> Entry | None:
    """One version's pointer; None if there is none, or it was removed."""
    if storage.stat(keys.tombstone(name, number)) is not None:
        return None
    return storage.stat(keys.version(name, number))


def read_version(storage: Storage, name: str, number: int) -> str:
    """The manifest digest that a version names.

    Raises:
        CorruptStoreError: the pointer does not hold a digest.
    """
    key = keys.version(name, number)
    return parse_version(storage, key, storage.read(key))


def parse_version(storage: Storage, key: str, data: Content) -> str:
    """The manifest digest in a version pointer's bytes.

    Raises:
        CorruptStoreError: they do not hold a digest.
    """
    match = _DIGEST.fullmatch(whole(data))
    if match is None:
        raise CorruptStoreError(
            f"the version pointer {storage.url}/{key} does not hold a digest: remove the version with `nash models rm` "
            "and publish the model again"
        )
    return match[1].decode()


def commit_version(storage: Storage, name: str, aliased: int | None, digest: str) -> tuple[int, bool]:
    """Make `digest` the newest version of a model, unless the newest one or the one in `aliased` has it already.

    Returns the version's number, and whether it is new.
    """
    if aliased is not None and _is_live_with(storage, name, aliased, digest):
        return aliased, False
    while True:
        last = newest(storage, keys.versions(name))
        if last and _is_live_with(storage, name, last, digest):
            return last, False
        if last >= keys.LAST_NUMBER:
            raise CorruptStoreError(f"{storage.url}: the numbers of {name} have come to their end: use another name")
        if storage.create(keys.version(name, last + 1), f"{digest}\n".encode()):
            return last + 1, True
        check_risen(storage, keys.versions(name), last)


def bury(storage: Storage, name: str, number: int, reason: str) -> bool:
    """Mark a version as removed; false if it is already."""
    text = json.dumps({"at": now_text(), "reason": reason, "nonce": uuid.uuid4().hex}, sort_keys=True)
    return storage.create(keys.tombstone(name, number), text.encode("ascii"))


@dataclass(frozen=True, kw_only=True)
class Burial:
    """What a tombstone says: when a version was removed (UTC, ISO) and why; both are empty if it cannot be read."""

    version: int
    at: str
    reason: str


def burials(storage: Storage, name: str) -> list[Burial]:
    """The removed versions of a model, ascending."""
    numbers = list(numbered(storage, keys.tombstones(name)))
    read = storage.read_all([keys.tombstone(name, number) for number in numbers])
    return [_burial(number, data) for number, data in zip(numbers, read, strict=True)]


def _burial(number: int, data: Content) -> Burial:
    fields: object = None
    with suppress(ValueError, RecursionError, CorruptStoreError):
        fields = json.loads(whole(data))
    known = fields if isinstance(fields, dict) else {}
    at, reason = known.get("at"), known.get("reason")
    return Burial(
        version=number, at=at if isinstance(at, str) else "", reason=reason if isinstance(reason, str) else ""
    )


def _is_live_with(storage: Storage, name: str, number: int, digest: str) -> bool:
    if live_version(storage, name, number) is None:
        return False
    try:
        return read_version(storage, name, number) == digest
    except CorruptStoreError:
        return False  # an unreadable pointer must not block the publish that replaces it


def _is_name(text: str) -> bool:
    try:
        check_name(text, "name")
    except InvalidRequestError:
        return False
    return True
