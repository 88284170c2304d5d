"""Measurements of a version: write-once records stored beside it, one JSON object each."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from model_store.errors import CorruptStoreError, InvalidRequestError
from model_store.objects import keys
from model_store.objects.times import utc_text
from model_store.storage.storage import LARGEST_POINTER_BYTES, Storage
from model_store.version.quality import KIND, QualityRecord


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
    folder = keys.measurements(name, digest)
    return storage.create(f"{folder}/{hashlib.sha256(identity).hexdigest()}", data)


def read_records(storage: Storage, name: str, digest: str) -> Iterator[tuple[str, dict[str, Any] | CorruptStoreError]]:
    """The records of a version, oldest first: key and content, or what is wrong with it.

    A copied record is as old as it says itself; its object may be younger.
    """
    folder = keys.measurements(name, digest)
    entries = {f"{folder}/{entry.name}": entry for entry in storage.entries(folder)}
    readable = [key for key, entry in entries.items() if entry.size <= LARGEST_POINTER_BYTES]
    data = dict(zip(readable, storage.read_all(readable), strict=True))
    found = []
    for key, entry in entries.items():
        content: dict[str, Any] | CorruptStoreError
        try:
            if key not in data:
                raise CorruptStoreError(f"{storage.url}/{key} has {entry.size} bytes, too many for a record: remove it")
            content = _parsed(storage, key, data[key])
        except CorruptStoreError as error:
            content = error
        at = None if isinstance(content, CorruptStoreError) else content.get("at")
        found.append((at if isinstance(at, str) else utc_text(entry.modified), key, content))
    for _, key, content in sorted(found, key=lambda each: each[:2]):
        yield key, content


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


def _parsed(storage: Storage, key: str, data: bytes | None) -> dict[str, Any]:
    where = f"{storage.url}/{key}"
    try:
        record = json.loads(data or b"")
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
