"""One accepted generation, as the API process sees it."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.results import FinishReason, Hypothesis, Timings, TopToken
from server.errors import ApiError, ClientGoneError
from server.frontend.workers.admission import Work
from server.messages import Finished, TokenReport
from server.telemetry.request_record import current
from server.text.answer import Answer, AnswerToken
from server.text.tokenization import TextCodec

# The label of nash_request_duration_seconds; what runs in the shadow counts there nowhere.
Mode = Literal["unary", "stream", "compare", "shadow"]


@dataclass(frozen=True, kw_only=True)
class ToldToken:
    """One token of the best answer, when it was made, and whether it is the last."""

    token: AnswerToken
    at_ms: float  # on the clock of the timings
    last: bool = False


class Generation:
    """Everything this process knows about the generation for one text, from source tokens to answers.

    It ends exactly once: finished, failed or cancelled. Only its supervisor ends it.
    """

    def __init__(
        self,
        source_ids: list[int],
        parameters: GenerationParameters,
        codec: TextCodec,
        *,
        mode: Mode,
        arrived_s: float,
        stops: Sequence[str] = (),
        streamed: bool = False,
        truncated: int = 0,
        reuses_source: bool = False,
        batch: bool = False,
        timeout_s: float = math.inf,
    ) -> None:
        """A generation that has not been accepted yet.

        Args:
            parameters: with their seed, so that a second run gives the same text.
            arrived_s: time.monotonic(); all times that callers or operators see count from here.
            stops: an answer ends before the first of these strings.
            streamed: whether the caller reads the tokens as they are made.
            truncated: how many tokens were cut from the source's end.
            reuses_source: whether its source may be one that was encoded for an earlier request.
            batch: whether it makes way for others.
            timeout_s: how long it may take in all, from its arrival; the server may allow less.
        """
        self.reuses_source = reuses_source
        self.truncated = truncated
        self.batch = batch
        self.timeout_s = timeout_s
        self.source_ids = source_ids
        self.parameters = parameters
        self.mode = mode
        self.arrived_s = arrived_s
        self.streamed = streamed
        # The supervisor uses these.
        self.id = 0  # unique for the life of its worker, once accepted
        self.owner = 0  # the same for all generations of one request, once accepted
        self.sent = False  # whether a worker has it
        self.deaths = 0  # how many workers died while they had it
        self.delivered = False  # whether a token was streamed, after which it cannot be rerun
        self.deadline: asyncio.TimerHandle | None = None
        self._codec = codec
        self.stops = stops
        self.cached = False  # whether its answer is that of an earlier, equal request
        request = current()
        self.trace = None if request is None else request.trace  # of the request that it belongs to
        self._when_done: Callable[[], None] = lambda: None
        self._best: Answer | None = None  # the best answer, if its tokens are reported one by one
        self._first_ms = 0.0  # when its first token was made
        self._finished: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        self._told: asyncio.Queue[ToldToken | None] = asyncio.Queue()

    @property
    def work(self) -> Work:
        """What it may take."""
        return Work.of(self.parameters, source_tokens=len(self.source_ids))

    def left_s(self, limit_s: float) -> float:
        """How long it may still take, if the server allows `limit_s` from its arrival."""
        return max(0.0, min(limit_s, self.timeout_s) - (time.monotonic() - self.arrived_s))

    @property
    def told_by_token(self) -> bool:
        """Whether its worker reports every token: a caller reads them, or a stop string may end the text."""
        return self.streamed or bool(self.stops)

    @property
    def several(self) -> bool:
        """Whether more than one answer was requested."""
        return self.parameters.num_return_sequences > 1

    async def result(self) -> Finished:
        """Wait for its result.

        Raises:
            ApiError: it failed.
        """
        return await self._finished

    async def tokens(self) -> AsyncIterator[ToldToken]:
        """The best answer's tokens as they are made. With beams or several samples, all come at once, at the end.

        Raises:
            ApiError: it failed.
        """
        while (told := await self._told.get()) is not None:
            yield told
        finished = await self.result()
        assert self._best is not None, "tokens are told where they are streamed"
        rest = self._best.complete(finished.hypotheses[0])
        for token in rest:
            yield ToldToken(token=token, at_ms=finished.timings.total_ms, last=token is rest[-1])

    def answers(self, finished: Finished, *, by_token: bool) -> list[Answer]:
        """All answers, best first, with their tokens one by one if `by_token` or if there are stop strings."""
        answers = []
        for rank, hypothesis in enumerate(finished.hypotheses):
            answer = self._best if rank == 0 else None
            if answer is None and not by_token and not self.stops:
                answer = Answer.whole(self._codec, self.parameters.prefix_ids, hypothesis)
            else:
                answer = answer or self._begun()
                answer.complete(hypothesis)
            answers.append(answer)
        return answers

    def begin(self) -> None:
        """Record that a worker gets it, and discard what an earlier worker made."""
        self.sent = True
        self._best = self._begun() if self.told_by_token else None

    def push(self, report: TokenReport) -> Finished | None:
        """Take one more token. Returns the result if a stop string ends the text with it, otherwise None."""
        assert self._best is not None, "a token that nobody asked for"
        token = self._best.add(report.token, report.logprob, report.top_tokens)
        if self._best.generated_tokens == 1:
            self._first_ms = report.at_ms
        if self.streamed:
            self.delivered = True
            self._told.put_nowait(ToldToken(token=token, at_ms=report.at_ms, last=self._best.stopped))
        return self._stopped(self._best, report) if self._best.stopped else None

    def finish(self, finished: Finished) -> None:
        """End it with a result."""
        self._end()
        if not self._finished.done():  # it is done already if the waiting task was cancelled
            self._finished.set_result(finished)
        self._when_done()

    def fail(self, error: ApiError) -> None:
        """End it with an error."""
        self._end()
        if not self._finished.done():
            self._finished.set_exception(error)
            self._finished.exception()  # mark it as retrieved: if nobody waits any more, asyncio must not log it
        self._when_done()

    def reuse(self, finished: Finished) -> None:
        """End it with the answer of an equal one: no time was spent in the queue or the engine."""
        total_ms = 1e3 * (time.monotonic() - self.arrived_s)
        timings = Timings(
            queue_ms=0.0,
            encode_ms=0.0,
            decode_ms=0.0,
            total_ms=total_ms,
            time_to_first_token_ms=total_ms,
            time_per_output_token_ms=None,
        )
        self.cached = True
        self.begin()
        self.finish(Finished(id=self.id, hypotheses=finished.hypotheses, timings=timings))

    def when_done(self, call: Callable[[], None]) -> None:
        """Call it once it has ended, in whatever way."""
        self._when_done = call

    @property
    def ended(self) -> bool:
        """Whether it has finished, failed or been cancelled."""
        return self._finished.done()

    @property
    def outcome(self) -> Finished | BaseException:
        """What it has ended with."""
        if self._finished.cancelled():
            return ClientGoneError("the client closed its connection")
        return self._finished.exception() or self._finished.result()

    def _begun(self) -> Answer:
        return Answer(self._codec, self.parameters.prefix_ids, self.stops)

    def _end(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        self._told.put_nowait(None)

    def _stopped(self, best: Answer, last: TokenReport) -> Finished:
        """The result so far, in a worker's form."""
        gaps = best.generated_tokens - 1
        hypothesis = Hypothesis(
            tokens=[each.id for each in best.tokens],
            finish_reason=FinishReason.STOP,
            score=None,
            logprobs=[each.logprob or 0.0 for each in best.tokens] if self.parameters.logprobs else [],
            top_tokens=[
                [TopToken(id=top.id, logprob=top.logprob or 0.0) for top in each.top_tokens] for each in best.tokens
            ]
            if self.parameters.top_n_tokens
            else [],
        )
        timings = Timings(
            queue_ms=last.queue_ms,
            encode_ms=last.encode_ms,
            decode_ms=last.at_ms - last.queue_ms - last.encode_ms,
            total_ms=last.at_ms,
            time_to_first_token_ms=self._first_ms,
            time_per_output_token_ms=(last.at_ms - self._first_ms) / gaps if gaps else None,
        )
        return Finished(id=self.id, hypotheses=[hypothesis], timings=timings)
