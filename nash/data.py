"""Task data: rows, tokenized examples, batches of like lengths."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from nash.data_formats import Record, on_hub, records
from nash.errors import RequestError
from nash.recipe import DataLayout, DataRecipe

IGNORED = -100  # the label of a padding position, as torch's cross-entropy and transformers have it


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of task data: a source text and every answer that counts as right, the preferred one first."""

    source: str
    targets: tuple[str, ...]


def read_rows(path: Path, layout: DataLayout | None = None) -> list[Row]:
    """Read task data of any format that `nash.data_formats` knows; `layout` says which columns hold what.

    Raises:
        RequestError: the data cannot be read, holds no row, or a row is malformed; names file and line.
    """
    layout = layout or DataLayout()
    rows = [_row(record, layout, f"{path}, {place}") for place, record in records(path)]
    if not rows:
        raise RequestError(f"data file {path} holds no rows: write one {layout.example} a line")
    return rows


def _row(record: Record, layout: DataLayout, place: str) -> Row:
    def bad(what: str) -> RequestError:
        return RequestError(f"{place}: {what}; wanted is {layout.example}")

    def value_of(column: str) -> Any:
        """`a.b` is the column of that name, or else b within a."""
        value: Any = record
        for part in [column] if column in record else column.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise bad(f"column {column!r} is missing; there are {', '.join(map(repr, record))}")
            value = value[part]
        return value

    source = value_of(layout.source_column)
    if not isinstance(source, str) or not source.strip():
        raise bad(f"{layout.source_column} is {source!r}, not a text with something in it")
    targets: list[str] = []
    for column in layout.target_columns:
        value = value_of(column)
        if len(layout.target_columns) > 1 and value in ("", None):
            continue  # this row has fewer right answers than others
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise bad(f"{column} is {value!r}, not a text or a list of texts")
        targets += texts
    if not targets:
        raise bad(f"none of {', '.join(layout.target_columns)} has a text in it")
    if any("\ud800" <= character <= "\udfff" for text in (source, *targets) for character in text):
        raise bad("a text holds half of a surrogate pair, which is no character")
    return Row(source=layout.prefix + source, targets=tuple(dict.fromkeys(targets)))


def data_digest(path: Path, layout: DataLayout) -> str:
    """The sha256 of what a run reads from `path`: of a file, of a folder's files, or of the rows that the hub gives."""
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


class TokenizedPairs(Dataset[dict[str, Any]]):
    """Every (source, target) pair of the rows as token ids; a row with several targets gives several pairs.

    Texts are cut at the limits as `evaluate` cuts them, by the tokenizer, which keeps end and language tokens; `cut`
    counts those that were.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_source_tokens: int,
        max_target_tokens: int,
    ) -> None:
        pairs = [(row.source, target) for row in rows for target in row.targets]
        sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
        self.sources, cut_sources = _encoded(tokenizer, sources, "text", max_source_tokens)
        self.targets, cut_targets = _encoded(tokenizer, targets, "text_target", max_target_tokens)
        self.cut = cut_sources + cut_targets
        self.row_numbers = [number for number, row in enumerate(rows, 1) for _ in row.targets]

    @classmethod
    def under(cls, data: DataRecipe, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> "TokenizedPairs":
        """The pairs under a recipe's length limits."""
        return cls(rows, tokenizer, max_source_tokens=data.max_source_tokens, max_target_tokens=data.max_target_tokens)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.row_numbers[index]
        return {"input_ids": self.sources[index], "labels": self.targets[index], "row": row}

    def lengths(self) -> list[tuple[int, int]]:
        """(source tokens, target tokens) of every pair."""
        return [(len(s), len(t)) for s, t in zip(self.sources, self.targets, strict=True)]


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], side: Literal["text", "text_target"], limit: int
) -> tuple[list[list[int]], int]:
    """The texts' ids, at most `limit` of each, and how many texts are longer.

    The tokenizers of mBART and NLLB write a text's language into it: a target's is another one than a source's.

    Raises:
        RequestError: the limit is less than the tokens that the tokenizer puts around every text.
    """
    if side == "text_target" and getattr(tokenizer, "tgt_lang", "") is None:
        tokenizer.tgt_lang = tokenizer.src_lang  # as the others do by themselves; M2M100's class fails without
    if limit < (around := tokenizer.num_special_tokens_to_add()):
        raise RequestError(
            f"a limit of {limit} tokens has no room for the {around} that the tokenizer puts around a text"
        )
    ids: list[list[int]] = tokenizer(**{side: texts}).input_ids
    long = [number for number, each in enumerate(ids) if len(each) > limit]
    if long:
        shortened = tokenizer(**{side: [texts[number] for number in long]}, truncation=True, max_length=limit).input_ids
        for number, each in zip(long, shortened, strict=True):
            ids[number] = each
    return ids, len(long)


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Pads a list of examples on the right into `input_ids`, `attention_mask` [B, S] and `labels` [B, T].

    `rows` [B] are the numbers, from 1, of the data's rows that they come from.
    """

    pad_id: int

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        sources = [example["input_ids"] for example in examples]
        return {
            "input_ids": _pad(sources, self.pad_id),
            "attention_mask": _pad([[1] * len(ids) for ids in sources], 0),
            "labels": _pad([example["labels"] for example in examples], IGNORED),
            "rows": torch.tensor([example["row"] for example in examples]),
        }


def _pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


class SimilarLengthSampler(Sampler[int]):
    """A fresh random order every epoch in which each run of `batch_size` indices has about the same lengths.

    Padding costs as much as real tokens: on short texts of mixed lengths this halves the time of an epoch. Shuffled
    pools of `pool_batches` batches are sorted by length and cut into batches, and the batches are shuffled, so that
    training does not sweep from long to short. The order depends on the seed and the epoch alone.
    """

    def __init__(
        self, lengths: Sequence[tuple[int, int]], batch_size: int, seed: int, *, pool_batches: int = 50
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.pool_size = batch_size * pool_batches
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; the Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(order), self.pool_size):
            pool = sorted(order[start : start + self.pool_size], key=self.lengths.__getitem__)
            batches += [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
        # The one short batch must stay last, or every batch after it would straddle two lengths.
        full = [batch for batch in batches if len(batch) == self.batch_size]
        short = [batch for batch in batches if len(batch) < self.batch_size]
        for i in torch.randperm(len(full), generator=generator).tolist():
            yield from full[i]
        for batch in short:
            yield from batch
