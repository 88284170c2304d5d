"""What parameters do to scores before a token is chosen: transformers' logits processors, in transformers' order.

Repetition penalty; then everything that bans tokens (repeated n-grams, bad words, an end token too early); then the
forced first and last token; then suppressed tokens. (Consecutive bans all hold, whatever their order.) Warping for
sampling follows, in `sampling`, and renormalization comes last.

Axes: R rows to process, V vocabulary. Rows are processed together, one kernel per kind of change.
"""

import math
from collections.abc import Collection
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.interface.parameters import GenerationParameters


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What one sequence's parameters ask of its scores, derived once. A history is all tokens of one of its rows:
    start token, prefix, and generated tokens."""

    repetition_penalty: float  # 1: none
    ngram: int  # 0: none
    bad_tokens: tuple[int, ...]
    bad_endings: tuple[tuple[list[int], int], ...]  # after these tokens, never this one
    eos_ids: tuple[int, ...]  # empty if they are ignored
    eos_from: int  # no end token after histories shorter than this
    forced_first: int | None  # after a history of the start token alone
    forced_last: tuple[int, ...]
    last_from: int  # length of the history after which the last token is chosen
    suppressed: tuple[int, ...]
    begin_suppressed: tuple[int, ...]
    begin: int  # length of the history at which they apply

    @classmethod
    def of(cls, parameters: GenerationParameters, eos_ids: Collection[int]) -> "Rules":
        """`eos_ids` are the model's end tokens."""
        eos = () if parameters.ignore_eos else tuple(eos_ids)
        words = [word for word in parameters.bad_words if len(word) > 1 or word[0] not in eos]
        prompt = parameters.prompt
        forced = parameters.forced_bos_token_id
        return cls(
            repetition_penalty=parameters.repetition_penalty,
            ngram=parameters.no_repeat_ngram_size,
            bad_tokens=tuple(word[0] for word in words if len(word) == 1),
            bad_endings=tuple((list(word[:-1]), word[-1]) for word in words if len(word) > 1),
            eos_ids=eos,
            eos_from=prompt + parameters.min_new_tokens if parameters.min_new_tokens else 0,
            forced_first=forced,
            forced_last=parameters.forced_eos_token_ids,
            last_from=prompt + parameters.max_new_tokens - 1,
            suppressed=parameters.suppress_tokens,
            begin_suppressed=parameters.begin_suppress_tokens,
            begin=prompt if prompt > 1 or forced is None else prompt + 1,
        )

    @property
    def standing(self) -> bool:
        """Whether every step has something to do, not just certain steps."""
        return (
            self.repetition_penalty != 1
            or self.ngram > 0
            or bool(self.bad_tokens or self.bad_endings or self.suppressed)
        )

    def apply_at(self, length: int) -> bool:
        """Whether there is something to do for a history of `length` tokens."""
        return (
            self.standing
            or length < self.eos_from
            or (length == 1 and self.forced_first is not None)
            or (length == self.last_from and bool(self.forced_last))
            or (length == self.begin and bool(self.begin_suppressed))
        )

    def steps_without(self, length: int) -> int:
        """For how many steps from a history of `length` tokens on there is nothing to do, up to the last step."""
        if self.apply_at(length):
            return 0
        next_at = self.begin if self.begin_suppressed and self.begin > length else self.last_from + 1
        return min(next_at, self.last_from if self.forced_last else self.last_from + 1) - length

    def banned(self, history: list[int]) -> list[int]:
        """Tokens that may not follow, before anything is forced; may contain duplicates."""
        banned = list(self.bad_tokens)
        if self.ngram:
            banned += _repeating(history, self.ngram)
        for before, token in self.bad_endings:
            if history[-len(before) :] == before:
                banned.append(token)
        if len(history) < self.eos_from:
            banned += self.eos_ids
        return banned

    def forced(self, history: list[int]) -> tuple[int, ...]:
        """The tokens of which one must follow; empty: any may follow."""
        if len(history) == self.last_from and self.forced_last:
            return self.forced_last
        if len(history) == 1 and self.forced_first is not None:
            return (self.forced_first,)
        return ()

    def banned_at_last(self, history: list[int]) -> tuple[int, ...]:
        """Tokens that may not follow, even if they are forced."""
        return self.suppressed + self.begin_suppressed if len(history) == self.begin else self.suppressed


def process(scores_RV: Tensor, rules: Ordered[Rules], histories: Ordered[list[int]]) -> None:
    """Change each row's scores in place, as its rules and its history require."""
    _penalize(scores_RV, rules, histories)
    pairs = list(zip(rules, histories, strict=True))
    _put(scores_RV, [rule.banned(history) for rule, history in pairs], -math.inf)
    forced = [rule.forced(history) for rule, history in pairs]
    rows = [row for row, tokens in enumerate(forced) if tokens]
    if rows:
        scores_RV[rows] = -math.inf
        _put(scores_RV, forced, 0.0)
    _put(scores_RV, [rule.banned_at_last(history) for rule, history in pairs], -math.inf)


def _penalize(scores_RV: Tensor, rules: Ordered[Rules], histories: Ordered[list[int]]) -> None:
    penalized = [row for row, rule in enumerate(rules) if rule.repetition_penalty != 1]
    if not penalized:
        return
    rows: list[int] = []
    tokens: list[int] = []
    penalties: list[float] = []
    for row in penalized:
        seen = set(histories[row])
        rows += [row] * len(seen)
        tokens += seen
        penalties += [rules[row].repetition_penalty] * len(seen)
    where = (_index(rows, scores_RV), _index(tokens, scores_RV))
    scores = scores_RV[where]
    penalty = torch.tensor(penalties, dtype=scores.dtype, device=scores.device)
    scores_RV[where] = torch.where(scores < 0, scores * penalty, scores / penalty)


def _put(scores_RV: Tensor, tokens_by_row: Ordered[Collection[int]], value: float) -> None:
    rows = [row for row, tokens in enumerate(tokens_by_row) for _ in tokens]
    if rows:
        tokens = [token for tokens in tokens_by_row for token in tokens]
        fill = scores_RV.new_full((), value)
        scores_RV.index_put_((_index(rows, scores_RV), _index(tokens, scores_RV)), fill)


def _index(values: list[int], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device)


def _repeating(history: list[int], size: int) -> list[int]:
    """The tokens that would repeat an n-gram of the history."""
    if len(history) < size:
        return []
    if size == 1:
        return history
    before = history[len(history) + 1 - size :]
    banned: list[int] = []
    last, at = before[-1], size - 2  # an n-gram's second-to-last token is at `size - 2` or later
    end = len(history) - 1  # where `before` itself ends: nothing follows it yet
    while True:
        try:
            at = history.index(last, at, end)
        except ValueError:
            return banned
        if history[at + 2 - size : at + 1] == before:
            banned.append(history[at + 1])
        at += 1
