"""One accepted generation, as the API process sees it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from server.engine.sequence import GenerationParameters
from server.errors import RequestError
from server.messages import Finished, Submit, TokenReport

Mode = Literal["unary", "stream", "compare"]  # the label of nash_request_duration_seconds


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What a variant is asked to generate."""

    source_ids: list[int]
    parameters: GenerationParameters
    stream: bool
    arrived_s: float  # time.monotonic(); every time that a caller or an operator sees counts from here


class Generation:
    """Ends exactly once: finished, failed or cancelled. Only its supervisor ends it."""

    def __init__(self, submit: Submit, mode: Mode) -> None:
        self.submit = submit
        self.mode = mode
        self.runs = 0  # how many workers it was given to; written by the supervisor
        self.delivered = False  # whether a token went out, after which it cannot be run again
        self.deadline: asyncio.TimerHandle | None = None  # written by the supervisor
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

    def push(self, report: TokenReport) -> None:
        """Take one more token of a streamed generation."""
        self.delivered = True
        self._tokens.put_nowait(report)

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
