"""Rows as token ids in flat arrays, in memory or in files that are mapped into it.

The ids of a million tokens take 4 MB. As Python lists of a tokenizer they take 145 MB.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from nash.data.rows import TaskRow
from nash.errors import RequestError
from nash.recipes.recipe import DataRecipe

# How much is tokenized at once. A tokenizer's own record of a token takes hundreds of bytes.
_MOST_TEXTS = 4096
_MOST_CHARACTERS = 1_000_000
_AT_ONCE = 4_000_000  # ids looked at at once: a comparison makes an array of its own

IDS, OFFSETS = np.dtype("<i4"), np.dtype("<i8")

T = TypeVar("T")


class Limits(NamedTuple):
    """The most tokens of a text."""

    source: int
    target: int

    @classmethod
    def of(cls, data: DataRecipe) -> Self:
        """A recipe's limits."""
        return cls(source=data.max_source_tokens, target=data.max_target_tokens)


@dataclass(frozen=True)
class RaggedTokens(Sequence[NDArray[np.int32]]):
    """The ids of many texts, one text after the other; each is a view of `ids`."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]  # [texts + 1]: where each text begins, and the end of the last

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.int32]:  # type: ignore[override]  # no slices
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self) -> NDArray[np.int64]:
        """The tokens of every text."""
        return np.diff(self.offsets)

    def largest(self) -> int:
        """The largest id; 0 if there is none."""
        return max((int(part.max()) for part in self._parts()), default=0)

    def has(self, token: int) -> bool:
        """Whether the id occurs."""
        return any(bool((part == token).any()) for part in self._parts())

    def _parts(self) -> Iterator[NDArray[np.int32]]:
        for start in range(0, len(self.ids), _AT_ONCE):
            yield self.ids[start : start + _AT_ONCE]


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """The tokens of some rows, one after the other, in the order of the rows."""

    rows: int
    source_ids: NDArray[np.int32]
    source_lengths: NDArray[np.int64]  # [rows]
    target_ids: NDArray[np.int32]
    target_lengths: NDArray[np.int64]  # [pairs]
    targets_of_row: NDArray[np.int64]  # [rows]: how many targets each has
    cut: int  # texts of all pairs that lost their end; a source counts once for each of its targets


def tokenized_batches(
    rows: Iterable[TaskRow], tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> Iterator[TokenBatch]:
    """Tokenize rows, some at a time. Longer texts are truncated, as in `evaluate`; end and language tokens stay.

    Raises:
        RequestError: a limit is below the number of tokens that the tokenizer adds around every text.
    """
    for batch in in_batches(rows, lambda row: len(row.source) + sum(map(len, row.targets))):
        counts = np.array([len(row.targets) for row in batch], OFFSETS)
        sources, cut_source = _encoded(tokenizer, [row.source for row in batch], "text", limits.source)
        answers = [target for row in batch for target in row.targets]
        targets, cut_target = _encoded(tokenizer, answers, "text_target", limits.target)
        yield TokenBatch(
            rows=len(batch),
            source_ids=_flat(sources),
            source_lengths=np.array(list(map(len, sources)), OFFSETS),
            target_ids=_flat(targets),
            target_lengths=np.array(list(map(len, targets)), OFFSETS),
            targets_of_row=counts,
            cut=int(counts[cut_source].sum()) + int(cut_target.sum()),
        )


def in_batches(items: Iterable[T], characters: Callable[[T], int]) -> Iterator[list[T]]:
    """The items in batches that a tokenizer takes at once: of so many characters, or of one item that is longer."""
    batch: list[T] = []
    held = 0
    for item in items:
        more = characters(item)
        if batch and (len(batch) == _MOST_TEXTS or held + more > _MOST_CHARACTERS):
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += more
    if batch:
        yield batch


def _flat(texts: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    return np.fromiter(chain.from_iterable(texts), IDS, sum(map(len, texts)))


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], side: Literal["text", "text_target"], limit: int
) -> tuple[list[list[int]], NDArray[np.bool_]]:
    """The texts' ids, at most `limit` of each, and which texts are longer.

    The tokenizers of mBART and NLLB add a language token to each text: targets have another language than sources.
    """
    if side == "text_target" and getattr(tokenizer, "tgt_lang", "") is None:
        tokenizer.tgt_lang = tokenizer.src_lang  # the other classes do this themselves; M2M100's fails without it
    if limit < (around := tokenizer.num_special_tokens_to_add()):
        raise RequestError(f"a limit of {limit} tokens has no room for the {around} that the tokenizer adds to a text")
    if tokenizer.is_fast:
        encoded = tokenizer(**{side: texts}, truncation=True, max_length=limit, return_attention_mask=False)
        return encoded.input_ids, np.array([bool(each.overflowing) for each in encoded.encodings], np.bool_)
    ids: list[list[int]] = tokenizer(**{side: texts}).input_ids  # such a tokenizer does not say what it cut
    longer = [number for number, each in enumerate(ids) if len(each) > limit]
    cut = np.zeros(len(texts), np.bool_)
    cut[longer] = True
    if longer:
        shortened = tokenizer(**{side: [texts[number] for number in longer]}, truncation=True, max_length=limit)
        for number, each in zip(longer, shortened.input_ids, strict=True):
            ids[number] = each
    return ids, cut
