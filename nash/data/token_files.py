"""The arrays of tokenized pairs: in memory, or in the files of a folder, written once and mapped by whoever reads them.

A folder of tokens has a file for each array, of little-endian numbers and nothing else, and `tokens.json`:

    format     the number below
    made_from  everything that the tokens depend on, as a JSON object; its sha256 names the folder
    cut        how many texts were truncated
    arrays     for each array its length and the CRC-32 of its file

The folder is written under another name and renamed when it is whole. One process at a time writes; the system takes
the lock from a process that is killed.
"""

import fcntl
import hashlib
import io
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from nash.data.rows import TaskRow
from nash.data.tokens import IDS, OFFSETS, Limits, TokenBatch, tokenized_batches

FORMAT = 1
_CONTENTS, _LOCK = "tokens.json", ".lock"
_DTYPES: dict[str, np.dtype[Any]] = {
    "source_ids": IDS,
    "source_offsets": OFFSETS,
    "target_ids": IDS,
    "target_offsets": OFFSETS,
    "rows": OFFSETS,
}
_BLOCK_BYTES = 1 << 24  # read at once to be checked


@dataclass(frozen=True, kw_only=True)
class PairArrays:
    """Rows and their pairs as flat arrays. A row's source is stored once, whatever the number of its targets."""

    source_ids: NDArray[np.int32]  # of all rows
    source_offsets: NDArray[np.int64]  # [rows + 1]
    target_ids: NDArray[np.int32]  # of all pairs
    target_offsets: NDArray[np.int64]  # [pairs + 1]
    rows: NDArray[np.int64]  # [pairs]: the row of each pair, from 0
    cut: int


def in_memory(rows: Iterable[TaskRow], tokenizer: PreTrainedTokenizerBase, limits: Limits) -> PairArrays:
    """The arrays of few rows."""
    files = {name: io.BytesIO() for name in _DTYPES}
    writer = _Writer(files)
    for batch in tokenized_batches(rows, tokenizer, limits):
        writer.add(batch)
    arrays = {name: np.frombuffer(file.getbuffer(), _DTYPES[name]) for name, file in files.items()}
    return PairArrays(cut=writer.cut, **arrays)


def mapped(folder: Path) -> PairArrays:
    """The arrays in a folder, mapped: they count as the system's cache, not as this process's memory."""
    contents = _contents(folder)
    arrays = {name: _map(folder, name, contents["arrays"][name]["length"]) for name in _DTYPES}
    return PairArrays(cut=contents["cut"], **arrays)


def kept_tokens(
    cache: Path,
    made_from: Mapping[str, Any],
    batches: Callable[[], Iterator[TokenBatch]],
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """The folder, within `cache`, of the tokens that are made from this; written from `batches` if it is missing.

    `made_from` has to say everything that the batches depend on. `say` is given a line where the work waits for
    another process, or replaces a damaged folder.

    Raises:
        OSError: the folder cannot be written. Nothing of it is left.
    """
    made_from = {"format": FORMAT, **made_from}
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    folder = cache / digest[:32]
    if folder.is_dir() and _damage(folder) is None:
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with _alone_in(cache, say):
        if folder.is_dir():
            damage = _damage(folder)
            if damage is None:  # another process has just written it
                return folder
            say(f"{folder} is damaged ({damage}): tokenizing again")
            shutil.rmtree(folder)
        for left in cache.glob("*.partial"):  # by a process that was killed
            shutil.rmtree(left)
        _write(folder, made_from, batches())
    return folder


def _write(folder: Path, made_from: Mapping[str, Any], batches: Iterator[TokenBatch]) -> None:
    partial = folder.with_suffix(".partial")
    partial.mkdir()
    try:
        with ExitStack() as stack:
            writer = _Writer({name: stack.enter_context(_file(partial, name).open("wb")) for name in _DTYPES})
            for batch in batches:
                writer.add(batch)
        # Not synchronized with the disk: what a power cut leaves does not have these checksums.
        contents = {"made_from": made_from, "cut": writer.cut, "arrays": writer.written()}
        (partial / _CONTENTS).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


class _Writer:
    """Appends batches to the files of the arrays."""

    def __init__(self, files: Mapping[str, BinaryIO]) -> None:
        self._files = files
        self._lengths = dict.fromkeys(files, 0)
        self._checksums = dict.fromkeys(files, 0)
        self.cut = 0
        for offsets in ("source_offsets", "target_offsets"):
            self._append(offsets, np.zeros(1))

    def add(self, batch: TokenBatch) -> None:
        """Append a batch."""
        row = self._lengths["source_offsets"] - 1 + np.arange(batch.rows)
        for side, ids, lengths in (
            ("source", batch.source_ids, batch.source_lengths),
            ("target", batch.target_ids, batch.target_lengths),
        ):
            self._append(f"{side}_offsets", self._lengths[f"{side}_ids"] + np.cumsum(lengths))
            self._append(f"{side}_ids", ids)
        self._append("rows", np.repeat(row, batch.targets_of_row))
        self.cut += batch.cut

    def written(self) -> dict[str, dict[str, int]]:
        """The length and the checksum of each array."""
        return {name: {"length": self._lengths[name], "crc32": self._checksums[name]} for name in self._files}

    def _append(self, name: str, values: NDArray[Any]) -> None:
        data = values.astype(_DTYPES[name]).tobytes()
        self._files[name].write(data)
        self._lengths[name] += len(values)
        self._checksums[name] = zlib.crc32(data, self._checksums[name])


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"


def _map(folder: Path, name: str, length: int) -> NDArray[Any]:
    if not length:
        return np.empty(0, _DTYPES[name])  # an empty file cannot be mapped
    return np.asarray(np.memmap(_file(folder, name), _DTYPES[name], "r", shape=(length,)))


def _contents(folder: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((folder / _CONTENTS).read_text(encoding="utf-8"))
    return contents


def _damage(folder: Path) -> str | None:
    """What is wrong with a folder of tokens; None if it is as it was written."""
    try:
        written = _contents(folder)["arrays"]
        for name, dtype in _DTYPES.items():
            file, size = _file(folder, name), written[name]["length"] * dtype.itemsize
            if file.stat().st_size != size:
                return f"{file.name} has {file.stat().st_size} bytes, not {size}"
            if _checksum(file) != written[name]["crc32"]:
                return f"{file.name} has another checksum"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum


@contextmanager
def _alone_in(cache: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the cache's lock; wait for the process that has it."""
    with (cache / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is tokenizing in {cache}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
