"""One accepted generation, as the API process sees it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal

from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.results import FinishReason, Hypothesis, Timings
from server.errors import RequestError
from server.messages import Finished, Submit, TokenReport
from server.text.answer_text import AnswerText

Mode = Literal["unary", "stream", "compare"]  # the label of nash_request_duration_seconds


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What a variant is asked to generate."""

    source_ids: list[int]
    parameters: GenerationParameters
    stream: bool  # whether whoever asked reads the tokens as they come
    arrived_s: float  # time.monotonic(); every time that a caller or an operator sees counts from here
    watch: Callable[[], AnswerText] | None = None  # begins its text anew; None where no stop string can end it


class Generation:
    """Ends exactly once: finished, failed or cancelled. Only its supervisor ends it."""

    def __init__(self, submit: Submit, request: GenerationRequest, mode: Mode) -> None:
        self.submit = submit
        self.request = request
        self.mode = mode
        self.runs = 0  # how many workers it was given to
        self.delivered = False  # whether a token went out, after which it cannot be run again
        self.deadline: asyncio.TimerHandle | None = None  # written by the supervisor
        self._watched: AnswerText | None = None
        self._seen: list[TokenReport] = []  # of the present run, where it is watched
        self._finished: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        self._tokens: asyncio.Queue[TokenReport | None] = asyncio.Queue()

    async def result(self) -> Finished:
        """Everything that it made.

        Raises:
            RequestError: it failed.
        """
        return await self._finished

    async def tokens(self) -> AsyncIterator[TokenReport]:
        """Tokens as they come, all but the last: that one comes with `result`."""
        while (report := await self._tokens.get()) is not None:
            yield report

    def begin(self) -> None:
        """Note that a worker gets it; what another one made of it before does not count."""
        self.runs += 1
        self._seen = []
        self._watched = None if self.request.watch is None else self.request.watch()

    def push(self, report: TokenReport) -> Finished | None:
        """Take one more token; where a stop string ends the text with it, what the generation came to."""
        if self._watched is not None:
            self._seen.append(report)
            self._watched.push(report.token)
            if self._watched.stopped:
                return self._stopped()
        if self.request.stream:
            self.delivered = True
            self._tokens.put_nowait(report)
        return None

    def finish(self, finished: Finished) -> None:
        """End it well."""
        self._end()
        if not self._finished.done():  # it is where whoever waited was cancelled
            self._finished.set_result(finished)

    def fail(self, error: RequestError) -> None:
        """End it with an error."""
        self._end()
        if not self._finished.done():
            self._finished.set_exception(error)
            self._finished.exception()  # where nobody waits any more, that is no bug to be logged

    def _end(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        self._tokens.put_nowait(None)

    def _stopped(self) -> Finished:
        """What was made so far, as a worker would tell it."""
        first, last, seen = self._seen[0], self._seen[-1], self._seen
        gaps = len(seen) - 1
        hypothesis = Hypothesis(
            tokens=[each.token for each in seen],
            finish_reason=FinishReason.STOP,
            score=None,
            logprobs=[each.logprob for each in seen if each.logprob is not None],
            top_tokens=[each.top_tokens for each in seen if each.top_tokens],
        )
        timings = Timings(
            queue_ms=last.queue_ms,
            encode_ms=last.encode_ms,
            decode_ms=last.at_ms - last.queue_ms - last.encode_ms,
            total_ms=last.at_ms,
            time_to_first_token_ms=first.at_ms,
            time_per_output_token_ms=(last.at_ms - first.at_ms) / gaps if gaps else None,
        )
        return Finished(id=self.submit.id, hypotheses=[hypothesis], timings=timings)
