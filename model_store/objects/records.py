"""Measurements of a version: write-once records stored beside it, one JSON object each."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from model_store.errors import CorruptStoreError, InvalidRequestError
from model_store.objects import keys
from model_store.storage.storage import LARGEST_POINTER_BYTES, Content, Storage, whole
from model_store.version.quality import KIND, QualityRecord

_ID = re.compile(r"[0-9a-f]{64}")


def add_record(storage: Storage, name: str, digest: str, document: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Store a record of a version under the id that `key` gives it; false if that id is taken.

    Raises:
        InvalidRequestError: it cannot be written as JSON, or is too large.
    """
    try:
        data, identity = (json.dumps(each, sort_keys=True, allow_nan=False).encode("ascii") for each in (document, key))
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"a record of {name} is not JSON: {error}") from None
    if len(data) > LARGEST_POINTER_BYTES:
        raise InvalidRequestError(f"a record of {name} has {len(data)} bytes: at most {LARGEST_POINTER_BYTES}")
    place = f"{keys.measurements(name, digest)}/{hashlib.sha256(identity).hexdigest()}"
    return storage.stat(place) is None and storage.create(place, data)


def read_records(storage: Storage, name: str, digest: str) -> Iterator[tuple[str, dict[str, Any] | CorruptStoreError]]:
    """The records of a version, oldest first: key and content, or what is wrong with it.

    A copied record is as old as it says itself; its object may be younger.
    """
    folder = keys.measurements(name, digest)
    entries = {f"{folder}/{entry.name}": entry for entry in storage.entries(folder)}
    found = []
    for (key, entry), data in zip(entries.items(), storage.read_all(list(entries)), strict=True):
        content: dict[str, Any] | CorruptStoreError
        try:
            content = _parsed(storage, key, data)
        except CorruptStoreError as error:
            content = error
        found.append((_made(content, entry.modified), key, content))
    for _, key, content in sorted(found, key=lambda each: each[:2]):
        yield key, content


def _made(content: dict[str, Any] | CorruptStoreError, modified: float) -> float:
    """When a record was made, in seconds since the epoch."""
    with suppress(ValueError, KeyError, TypeError, OverflowError):
        if isinstance(content, dict):
            return datetime.fromisoformat(content["at"]).timestamp()
    return modified


def read_qualities(storage: Storage, name: str, digest: str) -> list[QualityRecord]:
    """The quality records of a version, oldest first.

    Raises:
        CorruptStoreError: one of its records cannot be read.
    """
    found = []
    for _, record in read_records(storage, name, digest):
        if isinstance(record, CorruptStoreError):
            raise record
        if record["kind"] == KIND:
            found.append(QualityRecord.of(record))
    return found


def _parsed(storage: Storage, key: str, data: Content) -> dict[str, Any]:
    where = f"{storage.url}/{key}"
    if not _ID.fullmatch(key.rpartition("/")[2]):
        raise CorruptStoreError(f"{where} does not have the name of a record: remove it")
    try:
        record = json.loads(whole(data))
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(f"{where} is not JSON ({error}): remove it") from None
    if not isinstance(record, dict):
        raise CorruptStoreError(f"{where} is not a record: remove it")
    record.setdefault("kind", None)
    if record["kind"] == KIND:
        try:
            QualityRecord.of(record)
        except ValueError as error:
            raise CorruptStoreError(f"the quality record {where} is damaged ({error}): remove it") from None
    return record
