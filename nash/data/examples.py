"""Task data as training reads it: tokenized examples, in batches of similar lengths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from nash.data.rows import Rows
from nash.data.token_files import PairArrays, in_memory, mapped
from nash.data.tokens import Limits, RaggedTokens
from nash.recipes.recipe import DataRecipe

IGNORED = -100  # the label of a padding position, as in torch's cross-entropy and transformers


class TokenizedPairs(Dataset[dict[str, Any]]):
    """Every (source, target) pair of the rows as token ids; a row with several targets gives several pairs.

    `sources` has one text a row, `targets` one a pair, and `cut` counts the pairs' truncated texts. A worker process of
    a data loader is given the path of the arrays' files and maps them itself.
    """

    def __init__(self, arrays: PairArrays, folder: Path | None = None) -> None:
        """`folder` is where the arrays are mapped from; None if they are in memory."""
        self.sources = RaggedTokens(arrays.source_ids, arrays.source_offsets)
        self.targets = RaggedTokens(arrays.target_ids, arrays.target_offsets)
        self.cut = arrays.cut
        self._row_of_pair = arrays.rows
        self._arrays = arrays
        self._folder = folder

    @classmethod
    def of(
        cls, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, max_source_tokens: int, max_target_tokens: int
    ) -> Self:
        """The pairs of few rows, in memory.

        Raises:
            RequestError: a limit has no room for what the tokenizer adds around every text.
        """
        return cls(in_memory(rows, tokenizer, Limits(max_source_tokens, max_target_tokens)))

    @classmethod
    def under(cls, data: DataRecipe, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The pairs of few rows, in memory, under a recipe's length limits."""
        return cls(in_memory(rows, tokenizer, Limits.of(data)))

    @classmethod
    def in_folder(cls, folder: Path) -> Self:
        """The pairs whose arrays are in a folder of `nash.data.token_files`."""
        return cls(mapped(folder), folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            (TokenizedPairs, (self._arrays,)) if self._folder is None else (TokenizedPairs.in_folder, (self._folder,))
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(self._row_of_pair[index])
        return {"input_ids": self.sources[row], "labels": self.targets[index], "row": row + 1}

    def lengths(self) -> NDArray[np.int64]:
        """The source tokens and the target tokens of every pair, [pairs, 2]."""
        return np.stack([self.sources.lengths()[self._row_of_pair], self.targets.lengths()], axis=1)


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
            "attention_mask": _pad([np.ones(len(ids)) for ids in sources], 0),
            "labels": _pad([example["labels"] for example in examples], IGNORED),
            "rows": torch.tensor([example["row"] for example in examples]),
        }


def _pad(rows: Sequence[ArrayLike], value: int) -> torch.Tensor:
    arrays = [np.asarray(row) for row in rows]
    padded = np.full((len(arrays), max(map(len, arrays))), value, np.int64)
    for number, each in enumerate(arrays):
        padded[number, : len(each)] = each
    return torch.from_numpy(padded)


class SimilarLengthSampler(Sampler[int]):
    """A new random order every epoch; each run of `batch_size` indices has similar lengths.

    Padding costs as much as real tokens: on short texts of mixed lengths this sampler halves the time of an epoch. It
    sorts shuffled pools of `pool_batches` batches by length, cuts them into batches and shuffles the batches, so that
    training does not run from long to short. The order depends only on the seed and the epoch.
    """

    def __init__(self, lengths: NDArray[np.int64], batch_size: int, seed: int, *, pool_batches: int = 50) -> None:
        """`lengths` [pairs, 2]: the source tokens and the target tokens of each pair."""
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
        order = torch.randperm(len(self.lengths), generator=generator).numpy()
        for start in range(0, len(order), self.pool_size):
            pool = order[start : start + self.pool_size]
            sources, targets = self.lengths[pool].T
            order[start : start + self.pool_size] = pool[np.lexsort((targets, sources))]  # stable, by sources first
        # The one short batch must stay last; otherwise every later batch would straddle two lengths.
        full = len(order) // self.batch_size
        for i in torch.randperm(full, generator=generator).tolist():
            yield from order[i * self.batch_size : (i + 1) * self.batch_size].tolist()
        yield from order[full * self.batch_size :].tolist()
