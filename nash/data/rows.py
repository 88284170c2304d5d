"""Rows of task data, as read from files. This module does not need torch."""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from nash.data.formats import Record, on_hub, reader_of
from nash.errors import NashError, RequestError
from nash.recipes.recipe import DataLayout

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """One row of task data: a source text and every answer that counts as correct, the preferred one first."""

    source: str
    targets: tuple[str, ...]


Rows = Collection[TaskRow]  # that can be walked more than once: a list, or a `RowFile`


class RowFile(Collection[TaskRow]):
    """The rows of a data file, read anew on every walk: training data may be larger than the memory.

    Raises:
        RequestError: as in `read_rows`; all rows are checked here.
        NashError: on a walk, the file has changed since.
    """

    def __init__(self, path: Path, layout: DataLayout) -> None:
        self.path = path
        self.layout = layout
        self._records = reader_of(path)
        self._state = _state(path)
        self._length = sum(1 for _ in self)
        if not self._length:
            raise _without_rows(path, layout)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[TaskRow]:
        if _state(self.path) != self._state:
            raise NashError(f"data file {self.path} has changed since this command began: call it again")
        for place, record in self._records():
            yield _row(record, self.layout, f"{self.path}, {place}")

    def __contains__(self, row: object) -> bool:
        return any(row == each for each in self)


def _state(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written. What `datasets` reads is mapped once, and stays as it was."""
    if on_hub(path) or not path.is_file():
        return None
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def read_rows(path: Path, layout: DataLayout | None = None, *, most: int | None = None) -> list[TaskRow]:
    """Read task data, or its first `most` rows, in any format that `nash.data.formats` supports.

    `layout` names the columns to read.

    Raises:
        RequestError: the data cannot be read, hold no row, or a row is malformed; the message names file and line.
    """
    layout = layout or DataLayout()
    rows = [_row(record, layout, f"{path}, {place}") for place, record in islice(reader_of(path)(), most)]
    if not rows:
        raise _without_rows(path, layout)
    return rows


def rows_at(rows: Rows, numbers: Sequence[int]) -> list[TaskRow]:
    """The rows of these numbers, from 0, in the numbers' order; all are found on one walk."""
    wanted = set(numbers)
    found = {number: row for number, row in enumerate(rows) if number in wanted}
    return [found[number] for number in numbers]


@dataclass(frozen=True)
class Texts:
    """All sources and targets of rows, of which each walk reads the rows anew."""

    rows: Rows

    def __iter__(self) -> Iterator[str]:
        for row in self.rows:
            yield row.source
            yield from row.targets


def _without_rows(path: Path, layout: DataLayout) -> RequestError:
    return RequestError(f"data file {path} holds no rows: write one {layout.example} per line")


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
    if any(not text.isascii() and _SURROGATE.search(text) for text in (source, *targets)):
        raise bad("a text holds half of a surrogate pair, which is not a character")
    return TaskRow(source=layout.prefix + source, targets=tuple(dict.fromkeys(targets)))


def data_digest(path: Path, layout: DataLayout) -> str:
    """The sha256 of what a run reads from `path`: a file, a folder's files, or the rows that the hub returns."""
    if on_hub(path):
        digest, begin = hashlib.sha256(), "["  # of a JSON list of the rows
        for row in RowFile(path, layout):
            digest.update((begin + json.dumps([row.source, *row.targets])).encode())
            begin = ", "
        digest.update(b"]")
        return digest.hexdigest()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        digests = [[file.relative_to(path).as_posix(), file_digest(file)] for file in files]
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    return file_digest(path)


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
