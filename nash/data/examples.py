"""Task data as training reads it: tokenized examples, in batches of similar lengths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from nash.data.rows import TaskRow
from nash.errors import RequestError
from nash.recipes.recipe import DataRecipe

IGNORED = -100  # the label of a padding position, as in torch's cross-entropy and transformers


class TokenizedPairs(Dataset[dict[str, Any]]):
    """Every (source, target) pair of the rows as token ids; a row with several targets gives several pairs.

    The tokenizer truncates texts at the limits, as in `evaluate`, and keeps end and language tokens; `cut` counts the
    truncated texts.
    """

    def __init__(
        self,
        rows: Sequence[TaskRow],
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
    def under(cls, data: DataRecipe, rows: Sequence[TaskRow], tokenizer: PreTrainedTokenizerBase) -> "TokenizedPairs":
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

    The tokenizers of mBART and NLLB add a language token to each text: targets have another language than sources.

    Raises:
        RequestError: the limit is below the number of tokens that the tokenizer adds around every text.
    """
    if limit < (around := tokenizer.num_special_tokens_to_add()):
        raise RequestError(f"a limit of {limit} tokens has no room for the {around} that the tokenizer adds to a text")
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

    `rows` [B] holds the number, from 1, of the data row that each example comes from.
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
    """A new random order every epoch; each run of `batch_size` indices has similar lengths.

    Padding costs as much as real tokens: on short texts of mixed lengths this sampler halves the time of an epoch. It
    sorts shuffled pools of `pool_batches` batches by length, cuts them into batches and shuffles the batches, so that
    training does not run from long to short. The order depends only on the seed and the epoch.
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
        """Choose the order of this epoch."""
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
        # The one short batch must stay last; otherwise every later batch would straddle two lengths.
        full = [batch for batch in batches if len(batch) == self.batch_size]
        short = [batch for batch in batches if len(batch) < self.batch_size]
        for i in torch.randperm(len(full), generator=generator).tolist():
            yield from full[i]
        for batch in short:
            yield from batch
