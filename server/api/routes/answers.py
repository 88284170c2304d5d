"""From tokens to answers: each token with the text that it adds, stop strings cut."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from server.engine.interface.results import FinishReason, Hypothesis, TopToken
from server.frontend.generation import Generation
from server.frontend.variant import Variant
from server.messages import Finished


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One hypothesis, written out."""

    text: str
    finish_reason: FinishReason
    generated_tokens: int  # up to the stop string, where there is one
    score: float | None
    tokens: list[dict[str, Any]]  # empty where they were not asked for
    top_tokens: list[list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class StreamedToken:
    """One token of a stream; the last one brings the end with it."""

    index: int  # from 1
    document: dict[str, Any]
    top_tokens: list[dict[str, Any]]  # empty where not asked for
    at_ms: float  # when it was made, on the clock of the timings
    end: tuple[Finished, Answer] | None = None  # what was made, and the best of it


class Spelling:
    """Writes one answer out, token after token."""

    def __init__(self, variant: Variant, generation: Generation) -> None:
        self.tokens: list[dict[str, Any]] = []
        self.top_tokens: list[list[dict[str, Any]]] = []
        self._codec = variant.codec
        self._text = variant.text_of(generation)
        prefix = generation.submit.parameters.prefix_ids
        self._before = prefix[-1] if prefix else None

    @property
    def stopped(self) -> bool:
        """Whether a stop string came."""
        return self._text.stopped

    def add(self, token: int, logprob: float | None, top_tokens: Sequence[TopToken], *, last: bool = False) -> None:
        """Take the next token; after the `last` one nothing is held back."""
        text = self._text.finish(token) if last else self._text.push(token)
        self.tokens.append(self._document(token, text, logprob))
        if top_tokens:
            self.top_tokens.append(
                [
                    self._document(each.id, self._codec.decode_one(each.id, self._before), each.logprob)
                    for each in top_tokens
                ]
            )
        self._before = token

    def add_next_of(self, hypothesis: Hypothesis) -> bool:
        """Take the next token of a whole hypothesis; whether it was its last one, or brought a stop string."""
        at = len(self.tokens)
        last = at == len(hypothesis.tokens) - 1
        logprob = hypothesis.logprobs[at] if hypothesis.logprobs else None
        top_tokens = hypothesis.top_tokens[at] if hypothesis.top_tokens else []
        self.add(hypothesis.tokens[at], logprob, top_tokens, last=last)
        return last or self.stopped

    def answer(self, hypothesis: Hypothesis) -> Answer:
        """All of it, once it is at its end."""
        return Answer(
            text=self._text.text,
            finish_reason=FinishReason.STOP if self.stopped else hypothesis.finish_reason,
            generated_tokens=len(self.tokens),
            score=hypothesis.score,
            tokens=self.tokens,
            top_tokens=self.top_tokens,
        )

    def _document(self, token: int, text: str, logprob: float | None) -> dict[str, Any]:
        return {"id": token, "text": text, "logprob": logprob, "special": self._codec.is_special(token)}


def spell(variant: Variant, generation: Generation, hypothesis: Hypothesis, *, details: bool) -> Answer:
    """Write a hypothesis out; its tokens one by one only for `details`, or where a stop string may stand in it."""
    if not details and generation.request.watch is None:
        return Answer(
            text=variant.codec.decode(hypothesis.tokens, generation.submit.parameters.prefix_ids),
            finish_reason=hypothesis.finish_reason,
            generated_tokens=len(hypothesis.tokens),
            score=hypothesis.score,
            tokens=[],
            top_tokens=[],
        )
    spelling = Spelling(variant, generation)
    while not spelling.add_next_of(hypothesis):
        pass
    return spelling.answer(hypothesis)


async def streamed_tokens(variant: Variant, generation: Generation) -> AsyncGenerator[StreamedToken, None]:
    """Every token of the best answer as it comes, with its text; the generation is cancelled if the caller stops early.

    Beams and parallel samples come all at once, when they are decided.

    Raises:
        RequestError: it failed.
    """
    spelling = Spelling(variant, generation)
    try:
        async for report in generation.tokens():
            spelling.add(report.token, report.logprob, report.top_tokens)
            yield _last_token(spelling, report.at_ms)
        finished = await generation.result()
        best, ended = finished.hypotheses[0], False
        while not ended:
            ended = spelling.add_next_of(best)
            end = (finished, spelling.answer(best)) if ended else None
            yield _last_token(spelling, finished.timings.total_ms, end)
    finally:
        variant.supervisor.cancel(generation)


def _last_token(spelling: Spelling, at_ms: float, end: tuple[Finished, Answer] | None = None) -> StreamedToken:
    return StreamedToken(
        index=len(spelling.tokens),
        document=spelling.tokens[-1],
        top_tokens=spelling.top_tokens[-1] if spelling.top_tokens else [],
        at_ms=at_ms,
        end=end,
    )
