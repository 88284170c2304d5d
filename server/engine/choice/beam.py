"""Beam search over one sequence: which continuations live on, which are finished, and when no better one can come.

The rules are those of transformers' vectorized beam search, its -1e9 for beams that are none yet included. Knows no
tensors.
"""

import math
from collections.abc import Collection
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Protocol

from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.results import FinishReason, Hypothesis, TopToken

_OUT = -1.0e9  # what a score loses to come after all real ones


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A beam and the token that may continue it."""

    beam: int
    token: int
    score: float  # the summed scores of all its tokens
    logprob: float | None = None  # of the token alone; only where asked for


class Beam(Protocol):
    """What a search reads of a beam that runs."""

    history: list[int]  # the start token, the prefix, what was generated
    logprobs: list[float]  # of what was generated, or empty where not asked for
    top_tokens: list[list[TopToken]]


class BeamSearch:
    """The state between steps. Beams are numbered as the rows of their sequence."""

    def __init__(self, parameters: GenerationParameters, eos_ids: Collection[int]) -> None:
        """`eos_ids`: none where they are ignored."""
        self.beams = parameters.num_beams
        self.width = max(2, 1 + len(eos_ids)) * self.beams  # how many candidates a step looks at
        self.scores = [0.0] + [_OUT] * (self.beams - 1)  # of the beams that run
        self._ended: list[Hypothesis] = []  # best first, at most one a beam
        self._eos_ids = frozenset(eos_ids)
        self._length_penalty = parameters.length_penalty
        self._early_stopping = parameters.early_stopping
        self._most_tokens = parameters.max_new_tokens
        self._returned = parameters.num_return_sequences

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """What the search came to, best first: as many as were asked for, fewer where no more were possible."""
        return self._ended[: self._returned]

    def advance(self, candidates: Ordered[Candidate], rows: Ordered[Beam], length: int) -> list[Candidate] | None:
        """Take a step: for each beam the candidate that it becomes, or None where the search is over.

        `candidates` are the `width` best continuations of all beams, best first (or drawn, in the order of drawing),
        `rows` the beams as they stand before it, `length` how many tokens were generated with this one. A candidate
        stays with its own beam where it can, so that little is to be copied.
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
        """Keep the best of what is finished; only as many candidates as there are beams, the first ones, may be."""
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
        if not self._full:  # a strong penalty for length takes the score of a real beam below that of one that is none
            return max(best, possible) > _OUT
        worst = self._ended[-1].score
        assert worst is not None, "a beam without a score"
        return possible > worst


def _place(survivors: Ordered[Candidate]) -> list[Candidate]:
    """Order the survivors by the beam that each becomes: its own, unless a better one has taken that."""
    placed: dict[int, Candidate] = {}
    others = [each for each in survivors if placed.setdefault(each.beam, each) is not each]
    free = [beam for beam in range(len(survivors)) if beam not in placed]
    placed.update(zip(free, others, strict=True))
    return [placed[beam] for beam in range(len(survivors))]
