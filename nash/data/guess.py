"""What task data look like: which columns hold it, and what kind of task it is. Guesses, each with its reason."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from nash.data.formats import Record, reader_of
from nash.data.rows import TaskRow
from nash.errors import RequestError
from nash.recipes.recipe import MetricKind

# The names that such columns usually have, the likeliest first.
_SOURCES = ("source", "src", "input", "text", "document", "article", "dialogue", "question", "sentence", "word", "en")
_TARGETS = (
    "target",
    "tgt",
    "output",
    "summary",
    "highlights",
    "abstract",
    "answer",
    "answers",
    "label",
    "labels",
    "score",
)
_LOOKED_AT = 100  # rows, for the columns

_ARPABET = re.compile(r"[A-Z]{1,2}[0-2]?( [A-Z]{1,2}[0-2]?)*")
_MOST_LABELS = 20


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of sources and targets."""

    source: str
    target: str


@dataclass(frozen=True, kw_only=True)
class MetricGuess:
    """A kind of task, and what it was recognised by."""

    metric: MetricKind
    why: str


def guess_columns(path: Path, source: str | None, target: str | None) -> Columns:
    """The columns of a data file that have the usual names, else the first two with texts.

    Raises:
        RequestError: the data cannot be read, or have no two columns with texts.
    """
    seen: dict[str, int] = {}
    lists: set[str] = set()
    count = 0
    for _, record in islice(reader_of(path)(), _LOOKED_AT):
        count += 1
        for name, value in _text_columns(record):
            seen[name] = seen.get(name, 0) + 1
            if isinstance(value, list):
                lists.add(name)
    if not count:
        raise RequestError(f"data file {path} holds no rows")
    names = [name for name, times in seen.items() if times == count]
    texts = [name for name in names if name not in lists]
    found_target = target or _named([name for name in names if name != source], _TARGETS)
    found_source = source or _named([name for name in texts if name != found_target], _SOURCES)
    found_source = found_source or next((name for name in texts if name != found_target), None)
    found_target = found_target or next((name for name in names if name != found_source), None)
    if found_source is None or found_target is None:
        raise RequestError(
            f"{path} has no two columns with a text in every row (it has {', '.join(names) or 'none'}): "
            "give --source-column and --target-column"
        )
    return Columns(source=found_source, target=found_target)


def _text_columns(record: Record, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _text_columns(value, f"{prefix}{name}.")
        elif _holds_text(value):
            yield prefix + name, value


def _holds_text(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) and text.strip() for text in texts)


def _named(names: Sequence[str], usual: Sequence[str]) -> str | None:
    """The column that has the likeliest of the names, itself or as the column that it stands in."""
    by_part = {part.lower(): name for name in reversed(names) for part in name.split(".")}
    return next((by_part[each] for each in usual if each in by_part), None)


def guess_metric(rows: Sequence[TaskRow], columns: Columns) -> MetricGuess:
    """The kind of task that the rows look like. `exact` fits whatever has one right answer."""
    targets = [row.targets[0] for row in rows]
    labels = set(targets)
    if all(map(_is_number, targets)) and len(labels) > _MOST_LABELS:
        return MetricGuess(metric="correlation", why="all targets are numbers")
    if len(labels) <= _MOST_LABELS and 2 * len(labels) <= len(rows):
        return MetricGuess(metric="classification", why=f"the targets are {len(labels)} labels that come again")
    if all(map(_ARPABET.fullmatch, targets)):
        return MetricGuess(metric="phonemes", why="all targets are phonemes, as in K AE1 T")
    asked = fmean(row.source.rstrip().endswith("?") for row in rows)
    if "question" in columns.source.lower() or "answer" in columns.target.lower() or asked > 1 / 2:
        return MetricGuess(metric="question_answering", why="the sources are questions, or the targets answers")
    source_words, target_words = (fmean(len(text.split()) for text in texts) for texts in (_sources(rows), targets))
    if target_words < 3:
        return MetricGuess(metric="exact", why="the targets are short")
    if source_words > 3 * target_words:
        return MetricGuess(
            metric="summarization", why=f"{source_words:.0f} words of a source stand beside {target_words:.0f}"
        )
    return MetricGuess(metric="translation", why="sources and targets are sentences of like lengths")


def _sources(rows: Sequence[TaskRow]) -> list[str]:
    return [row.source for row in rows]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
