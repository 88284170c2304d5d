"""One generation, from request to last token. All its state is here."""

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.results import FinishReason, Hypothesis, Timings, TopToken

if TYPE_CHECKING:  # it needs PyTorch; who only speaks of sequences does not
    from server.engine.choice.decoding import Decoding


class Status(StrEnum):
    """Where a sequence is in its life cycle. The last three are final."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class TokenEvent:
    """News about one sequence: a token (and how it ended, if it did), or the error that ended it.

    Beams and parallel samples give no tokens along the way: their one event says that they are done.
    """

    sequence_id: int
    token: int | None
    made_s: float  # time.monotonic() at the end of its step
    logprob: float | None = None  # only if the parameters ask for it
    top_tokens: list[TopToken] = field(default_factory=list)  # best first; empty if not requested
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(kw_only=True, eq=False, slots=True)
class Row:
    """One row of a sequence's decoding, with its own cache slot: the only row, a sample, or a beam."""

    sequence: "Sequence"
    index: int  # among the sequence's rows

    # Written by the scheduler.
    slot: int | None = None  # None unless running

    # Written by the engine as it commits a step.
    history: list[int]  # start token, prefix, generated tokens; all but the last `fresh` are in the cache
    fresh: int  # how many of them the decoder has not seen: at first the prompt, later one token
    logprobs: list[float] = field(default_factory=list)  # of the generated tokens
    top_tokens: list[list[TopToken]] = field(default_factory=list)

    @property
    def made(self) -> int:
        """The number of generated tokens."""
        return len(self.history) - self.sequence.parameters.prompt

    @property
    def generated(self) -> list[int]:
        """The generated tokens."""
        return self.history[self.sequence.parameters.prompt :]

    @property
    def decoding(self) -> "Decoding":
        """How its sequence is decoded."""
        return self.sequence.decoding

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why a row that is not a beam has ended; None if it has not."""
        if self.history[-1] in self.decoding.eos_ids:
            return FinishReason.EOS
        return FinishReason.LENGTH if self.made == self.sequence.parameters.max_new_tokens else None

    def hypothesis(self, reason: FinishReason) -> Hypothesis:
        """The result of a row that is not a beam; one of several samples is scored by its log-probability."""
        parameters = self.sequence.parameters
        return Hypothesis(
            tokens=self.generated,
            finish_reason=reason,
            score=sum(self.logprobs) if parameters.rows > 1 else None,
            logprobs=self.logprobs if parameters.logprobs else [],
            top_tokens=self.top_tokens,
        )

    def append(self, token: int, logprob: float | None, top_tokens: list[TopToken]) -> None:
        """Append what a step generated; `logprob` and `top_tokens` if they are kept."""
        self.history.append(token)
        self.fresh = 1
        if logprob is not None:
            self.logprobs.append(logprob)
        if top_tokens:
            self.top_tokens.append(top_tokens)


@dataclass(kw_only=True, eq=False)
class Sequence:
    """All state of one generation.

    Times are `time.monotonic()` seconds, which all processes of one machine share, so a timing may span two.
    """

    # Written by the caller, which also chooses ids unique among the sequences of one engine.
    id: int
    source_ids: list[int]
    parameters: GenerationParameters
    arrived_s: float = field(default_factory=time.monotonic)
    reuses_source: bool = False  # whether its source may be one that was encoded before, and kept for later
    owner: int = -1  # the same for all sequences of one request, which share what a request gets; by default its id
    batch: bool = False  # whether it makes way for others

    # Written by the scheduler.
    status: Status = Status.WAITING
    overtaken: int = 0  # how many later arrivals were admitted first

    # Written by the engine when it accepts the sequence, and when it commits a step.
    decoding: "Decoding" = field(init=False, repr=False)
    rows: list[Row] = field(default_factory=list)  # those still running, or waiting to
    hypotheses: list[Hypothesis] = field(default_factory=list)  # best first, once finished
    tokens: list[int] = field(default_factory=list)  # the only row's as they come, else finally the best hypothesis's
    logprobs: list[float] = field(default_factory=list)  # one per token; empty if not requested
    finish_reason: FinishReason | None = None  # the best hypothesis's
    error: str | None = None  # why it failed
    admitted_s: float | None = None
    encoded_s: float | None = None
    first_token_s: float | None = None  # for beams and parallel samples: the end of the first step
    finished_s: float | None = None  # when it reached any final status

    def __post_init__(self) -> None:
        if self.owner < 0:
            self.owner = self.id

    @property
    def timings(self) -> Timings:
        """The durations of this sequence, which must be finished."""
        assert self.admitted_s is not None, f"sequence {self.id} is {self.status}"
        assert self.encoded_s is not None, f"sequence {self.id} is {self.status}"
        assert self.first_token_s is not None, f"sequence {self.id} is {self.status}"
        assert self.finished_s is not None, f"sequence {self.id} is {self.status}"
        gaps = len(self.tokens) - 1
        return Timings(
            queue_ms=1e3 * (self.admitted_s - self.arrived_s),
            encode_ms=1e3 * (self.encoded_s - self.admitted_s),
            decode_ms=1e3 * (self.finished_s - self.encoded_s),
            total_ms=1e3 * (self.finished_s - self.arrived_s),
            time_to_first_token_ms=1e3 * (self.first_token_s - self.arrived_s),
            time_per_output_token_ms=1e3 * (self.finished_s - self.first_token_s) / gaps if gaps else None,
        )

    def begin(self, start_id: int) -> None:
        """Create the rows before the sequence queues; `start_id` is the decoder's start token."""
        history = [start_id, *self.parameters.prefix_ids]
        self.rows = [
            Row(sequence=self, index=i, history=list(history), fresh=len(history)) for i in range(self.parameters.rows)
        ]
