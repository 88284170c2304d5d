"""Sources of task data: one reader for each format; all yield records keyed by column name.

JSONL, CSV and TSV need no extra package. Parquet files, folders saved by `datasets` and the Hugging Face hub need the
extra `nash[datasets]`. It is an extra, imported on first use, because it is large and most data files do not need it.
"""

import csv
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from nash.errors import RequestError
from nash.recipes.recipe import HUB_PREFIX

_HUB = re.compile(
    r"hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?(?::(?P<config>[\w.+-]+))?:(?P<split>[\w.]+)",
    re.ASCII,
)

_PARQUET_ROWS = 1000  # decoded at once

Record = Mapping[str, Any]
Placed = tuple[str, Record]  # "line 7" or "row 7", counted from 1, and the record found there


def on_hub(path: Path) -> bool:
    """Whether a path from a recipe or a flag stands for a data set on the hub."""
    return str(path).startswith(HUB_PREFIX)


def reader_of(path: Path) -> Callable[[], Iterator[Placed]]:
    """What gives the records at every call, from the first one on, without holding them all in memory.

    The path is that of a data file, of a folder saved by `datasets`, or `hub:OWNER/NAME[@REVISION][:CONFIG]:SPLIT`,
    which is loaded once. A file that does not end in .csv, .tsv or .parquet is read as JSONL.

    Raises:
        RequestError: the data cannot be read in the format that the name implies, or, while iterating, a part is
            malformed; the message names file and place.
    """
    if on_hub(path):
        return partial(_rows, _hub_dataset(str(path)))
    if path.is_dir():
        return partial(_rows, _saved_dataset(path))
    readers = {".csv": _from_csv, ".tsv": _from_tsv, ".parquet": _from_parquet}
    return partial(readers.get(path.suffix.lower(), _from_json_lines), path)


def needs_datasets(path: Path) -> bool:
    """Whether reading this path needs the package `datasets`, which takes seconds to import."""
    return on_hub(path) or path.is_dir() or path.suffix.lower() == ".parquet"


def check_obtainable(path: Path) -> None:
    """Check data that the package `datasets` will read, without importing it.

    Raises:
        RequestError: the package or the data are missing, or the name is not valid on the hub.
    """
    if importlib.util.find_spec("datasets") is None:
        raise _without_datasets(path)
    if on_hub(path):
        _hub_parts(str(path))
    elif not path.exists():
        raise _unreadable(path, "there is no such file")


def is_split_folder(path: Path) -> bool:
    """Whether a path is a folder with several splits, rather than a single split saved by `datasets`."""
    return path.is_dir() and not (path / "dataset_info.json").is_file()


def split_path(folder: Path, split: str) -> Path:
    """The data of one split, in a folder with a file, or a folder saved by `datasets`, for each split.

    Raises:
        RequestError: the split has no data, or more than one candidate.
    """
    names = [f"{split}.jsonl", f"{split}.csv", f"{split}.tsv", f"{split}.parquet", split]
    found = [folder / name for name in names if (folder / name).exists()]
    if len(found) != 1:
        there = ", ".join(path.name for path in found)
        raise RequestError(
            f"{folder} has {there}, all for the split {split!r}: give the path of the one to read"
            if found
            else f"{folder} has no data for the split {split!r}: add one of {', '.join(names)}"
        )
    return found[0]


def _unreadable(path: Path, error: object) -> RequestError:
    if isinstance(error, UnicodeDecodeError):
        return RequestError(f"data file {path} is not UTF-8 ({_not_utf8(path)}): save it as UTF-8")
    return RequestError(f"data file {path} cannot be read: {error}")


def _not_utf8(path: Path) -> str:
    """Where the first bytes are that are not UTF-8. A decoder that reads ahead counts from the start of its block."""
    before = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):  # no character of several bytes has a byte "\n"
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"{error.reason} at byte {before + error.start}, line {number}"
            before += len(line)
    return "the file has changed since"


def _from_json_lines(path: Path) -> Iterator[Placed]:
    try:
        # Only a newline ends a row, in the spelling of any system: U+2028 and similar characters are part of a text.
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"line {number}", _object_in(line, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _object_in(line: str, place: str) -> Record:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{place}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise RequestError(f"{place}: {line.strip()[:40]!r} is not an object")
    return value


def _from_csv(path: Path) -> Iterator[Placed]:
    return _cells(path, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def _from_tsv(path: Path) -> Iterator[Placed]:
    """TSV has no quoting (the IANA's text/tab-separated-values): a quote character is part of the text."""
    return _cells(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _cells(path: Path, *, delimiter: str, quoting: int) -> Iterator[Placed]:
    """The records of a table of texts. The first line names the columns; no cell is parsed as a number or as null."""
    csv.field_size_limit(sys.maxsize)  # a cell may hold a book; the limit is process-wide
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise RequestError(f"{path}, line 1: the header {header} names a column twice")
            line = reader.line_num + 1  # a record may span lines: messages name its first
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise RequestError(f"{path}, line {line}: {len(cells)} cells, but {len(header)} in the header")
                if cells:
                    yield f"line {line}", dict(zip(header, cells, strict=True))
                line = reader.line_num + 1
    except csv.Error as error:
        raise RequestError(f"{path}, line {reader.line_num}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _from_parquet(path: Path) -> Iterator[Placed]:
    datasets = _datasets(path)  # before pyarrow, which is installed with it
    from pyarrow import ArrowException, Table, parquet

    before = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_ROWS):
                yield from _rows(datasets.Dataset(Table.from_batches([batch])), before)
                before += batch.num_rows
    except (OSError, ArrowException) as error:
        raise _unreadable(path, error) from error


def _saved_dataset(path: Path) -> Any:
    """A `datasets.Dataset`, memory-mapped."""
    datasets = _datasets(path)
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # a damaged JSON file may raise any
        raise _unreadable(path, error) from error
    if isinstance(found, datasets.DatasetDict):
        raise RequestError(f"{path} holds several splits: give one of {', '.join(str(path / name) for name in found)}")
    return found


def _hub_dataset(text: str) -> Any:
    """A `datasets.Dataset`, in the library's own cache and memory-mapped."""
    parts = _hub_parts(text)
    datasets = _datasets(text)
    try:
        found = datasets.load_dataset(parts["name"], parts["config"], split=parts["split"], revision=parts["revision"])
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(
            f"{text} cannot be loaded ({reason}): the hub needs a network; or give a local file"
        ) from error
    return found


def _hub_parts(text: str) -> re.Match[str]:
    parts = _HUB.fullmatch(text)
    if parts is None:
        raise RequestError(f"{text} does not name data on the hub: write hub:OWNER/NAME[@REVISION][:CONFIG]:SPLIT")
    return parts


def _datasets(wanted_for: object) -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise _without_datasets(wanted_for) from error
    datasets.disable_progress_bars()
    module: ModuleType = datasets
    return module


def _without_datasets(wanted_for: object) -> RequestError:
    return RequestError(
        f"{wanted_for} needs the package datasets: pip install 'nash[datasets]', or convert the data to JSONL"
    )


def _rows(dataset: Any, before: int = 0) -> Iterator[Placed]:
    """The rows of a `datasets.Dataset`, with class names in place of class numbers; `before` of its file precede it."""
    names = {
        column: feature.names for column, feature in dataset.features.items() if type(feature).__name__ == "ClassLabel"
    }
    for number, row in enumerate(dataset, before + 1):
        for column, labels in names.items():
            if row[column] is not None and row[column] >= 0:  # -1: not labelled
                row[column] = labels[row[column]]
        yield f"row {number}", row
