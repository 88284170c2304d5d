"""What was measured on a version: files beside it that are written once, a JSON object each."""

import json
from pathlib import Path
from typing import Any

from model_store.disk.paths import Paths
from model_store.errors import CorruptStoreError
from model_store.version.quality import KIND, QualityRecord


def record_paths(paths: Paths, name: str, digest: str) -> list[Path]:
    """The records of a version, oldest first."""
    folder = paths.measurements(name, digest)
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def read_record(path: Path) -> dict[str, Any]:
    """One of them.

    Raises:
        CorruptStoreError: it is no JSON object.
    """
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(f"{path} is not JSON ({error}): remove it") from None
    if not isinstance(record, dict):
        raise CorruptStoreError(f"{path} is no record: remove it")
    return record


def read_quality(path: Path) -> QualityRecord | None:
    """One of them, where it is a quality record.

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
