"""Measurements of a version: write-once files stored beside it, one JSON object each."""

import json
from pathlib import Path
from typing import Any

from model_store.disk.paths import Paths
from model_store.errors import CorruptStoreError
from model_store.version.quality import KIND, QualityRecord


def record_paths(paths: Paths, name: str, digest: str) -> list[Path]:
    """The files of a version's records, oldest first."""
    folder = paths.measurements(name, digest)
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def read_record(path: Path) -> dict[str, Any]:
    """Read one record.

    Raises:
        CorruptStoreError: it is not a JSON object.
    """
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(f"{path} is not JSON ({error}): remove it") from None
    if not isinstance(record, dict):
        raise CorruptStoreError(f"{path} is not a record: remove it")
    return record


def read_quality(path: Path) -> QualityRecord | None:
    """Read one record; None if it is not a quality record.

    Raises:
        CorruptStoreError: it cannot be read.
    """
    record = read_record(path)
    if record.get("kind") != KIND:
        return None
    try:
        return QualityRecord.of(record)
    except ValueError as error:
        raise CorruptStoreError(f"the quality record {path} is damaged ({error}): remove it") from None
