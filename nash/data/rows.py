"""Rows of task data, as read from files. This module does not need torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nash.data.formats import Record, on_hub, records
from nash.errors import RequestError
from nash.recipes.recipe import DataLayout


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """One row of task data: a source text and every answer that counts as correct, the preferred one first."""

    source: str
    targets: tuple[str, ...]


def read_rows(path: Path, layout: DataLayout | None = None, *, most: int | None = None) -> list[TaskRow]:
    """Read task data, or its first `most` rows, in any format that `nash.data.formats` supports.

    `layout` names the columns to read.

    Raises:
        RequestError: the data cannot be read, hold no row, or a row is malformed; the message names file and line.
    """
    layout = layout or DataLayout()
    rows = [_row(record, layout, f"{path}, {place}") for place, record in islice(records(path), most)]
    if not rows:
        raise RequestError(f"data file {path} holds no rows: write one {layout.example} per line")
    return rows


def _row(record: Record, layout: DataLayout, place: str) -> TaskRow:
    def bad(what: str) -> RequestError:
        return RequestError(f"{place}: {what}; expected {layout.example}")

    def value_of(column: str) -> Any:
        """`a.b` is the column of that name, or otherwise b within a."""
        value: Any = record
        for part in [column] if column in record else column.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise bad(f"column {column!r} is missing; the row has {', '.join(map(repr, record))}")
            value = value[part]
        return value

    source = value_of(layout.source_column)
    if not isinstance(source, str) or not source.strip():
        raise bad(f"{layout.source_column} is {source!r}, not a non-empty text")
    targets: list[str] = []
    for column in layout.target_columns:
        value = value_of(column)
        if len(layout.target_columns) > 1 and value in ("", None):
            continue  # this row has fewer correct answers than others
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise bad(f"{column} is {value!r}, not a text or a list of texts")
        targets += texts
    if not targets:
        raise bad(f"none of {', '.join(layout.target_columns)} has a text")
    if any("\ud800" <= character <= "\udfff" for text in (source, *targets) for character in text):
        raise bad("a text holds half of a surrogate pair, which is not a character")
    return TaskRow(source=layout.prefix + source, targets=tuple(dict.fromkeys(targets)))


def data_digest(path: Path, layout: DataLayout) -> str:
    """The sha256 of what a run reads from `path`: a file, a folder's files, or the rows that the hub returns."""
    if on_hub(path):
        rows = [[row.source, *row.targets] for row in read_rows(path, layout)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        digests = [[file.relative_to(path).as_posix(), file_digest(file)] for file in files]
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    return file_digest(path)


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
