"""Beam search over one sequence: which continuations survive, which are finished, and when no better one can come.

The rules are those of transformers' vectorized beam search, including its -1e9 for beams that do not exist yet. Knows
no tensors.
"""

import math
from collections.abc import Collection
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Protocol

from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.results import FinishReason, Hypothesis, TopToken

_OUT = -1.0e9  # added to a score to rank it after all real ones


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A beam and the token that may continue it."""

    beam: int
    token: int
    score: float  # the sum of all its tokens' scores
    logprob: float | None = None  # of the token alone; only if requested


class Beam(Protocol):
    """What a search reads from a running beam."""

    history: list[int]  # start token, prefix, generated tokens
    logprobs: list[float]  # of the generated tokens; empty if not requested
    top_tokens: list[list[TopToken]]


class BeamSearch:
    """The state between steps. Beams are numbered like the rows of their sequence."""

    def __init__(self, parameters: GenerationParameters, eos_ids: Collection[int]) -> None:
        """`eos_ids`: empty if end tokens are ignored."""
        self.beams = parameters.num_beams
        self.width = max(2, 1 + len(eos_ids)) * self.beams  # how many candidates a step considers
        self.scores = [0.0] + [_OUT] * (self.beams - 1)  # of the running beams
        self._ended: list[Hypothesis] = []  # best first, at most one per beam
        self._eos_ids = frozenset(eos_ids)
        self._length_penalty = parameters.length_penalty
        self._early_stopping = parameters.early_stopping
        self._most_tokens = parameters.max_new_tokens
        self._returned = parameters.num_return_sequences

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """The search's results, best first: as many as requested, or fewer if no more were possible."""
        return self._ended[: self._returned]

    def advance(self, candidates: Ordered[Candidate], rows: Ordered[Beam], length: int) -> list[Candidate] | None:
        """Take a step: returns the candidate that each beam becomes, or None if the search is over.

        `candidates` are the `width` best continuations of all beams, best first (or drawn, in drawing order); `rows`
        are the beams before the step; `length` is the number of generated tokens, including this one. A candidate
        stays with its own beam if it can, so that little is copied.
        """
        ends = [length == self._most_tokens or each.token in self._eos_ids for each in candidates]
        self._collect(candidates, ends, rows, length)
        running = [
            replace(each, score=each.score + _OUT) if end else each for each, end in zip(candidates, ends, strict=True)
        ]
        running.sort(key=attrgetter("score"), reverse=True)
        survivors = running[: self.beams]
        closed = self._full and self._early_stopping is True
        if all(ends) or closed or not self._may_improve(survivors[0].score, length):
            return None
        placed = _place(survivors)
        self.scores = [each.score for each in placed]
        return placed

    @property
    def _full(self) -> bool:
        return len(self._ended) == self.beams

    def _collect(self, candidates: Ordered[Candidate], ends: list[bool], rows: Ordered[Beam], length: int) -> None:
        """Keep the best finished answers; only the first `beams` candidates may finish."""
        for candidate, end in zip(candidates[: self.beams], ends, strict=False):
            if end and candidate.score > -math.inf:
                self._ended.append(self._hypothesis(candidate, rows[candidate.beam], length))
        self._ended.sort(key=lambda each: each.score or 0.0, reverse=True)
        del self._ended[self.beams :]

    def _hypothesis(self, candidate: Candidate, row: Beam, length: int) -> Hypothesis:
        history = [*row.history, candidate.token]
        return Hypothesis(
            tokens=history[len(history) - length :],
            finish_reason=FinishReason.EOS if candidate.token in self._eos_ids else FinishReason.LENGTH,
            score=candidate.score / float(length) ** self._length_penalty,
            logprobs=[] if candidate.logprob is None else [*row.logprobs, candidate.logprob],
            top_tokens=list(row.top_tokens),
        )

    def _may_improve(self, best: float, length: int) -> bool:
        """Whether the best running beam could still beat the worst finished answer, by transformers' estimate."""
        if self._early_stopping == "never" and self._length_penalty > 0:
            length = self._most_tokens
        possible: float = best / float(length) ** self._length_penalty
        if not self._full:  # a strong length penalty can take a real beam's score below a nonexistent one's
            return max(best, possible) > _OUT
        worst = self._ended[-1].score
        assert worst is not None, "a beam without a score"
        return possible > worst


def _place(survivors: Ordered[Candidate]) -> list[Candidate]:
    """Order the survivors by the beam that each becomes: its own, unless a better one has taken it."""
    placed: dict[int, Candidate] = {}
    others = [each for each in survivors if placed.setdefault(each.beam, each) is not each]
    free = [beam for beam in range(len(survivors)) if beam not in placed]
    placed.update(zip(free, others, strict=True))
    return [placed[beam] for beam in range(len(survivors))]
