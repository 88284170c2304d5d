"""One generation, from request to last token, and the small types around it.

Needs no torch: the API process, which holds none, shares these types with the engine.
"""

import time
from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a generation ended by itself; the values are those of the wire format."""

    EOS = "eos_token"
    LENGTH = "length"


class Status(StrEnum):
    """Where a sequence is in its life. The last three are final."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class GenerationParameters:
    """What a caller may choose for one generation. Decoding is greedy."""

    max_new_tokens: int
    logprobs: bool = False  # also give each token's natural-log probability
    ignore_eos: bool = False  # go on to max_new_tokens whatever comes: forced lengths, for measurements


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a model is loaded; fixed for the life of its engine."""

    dtype: str = "float32"  # what the engine computes in: "float32", "bfloat16", "float64"; "float16" on CUDA
    device: str = "cpu"
    threads: int | None = None  # torch's threads, process-wide; None leaves them as they are
    slots: int = 32  # how many sequences can run at once
    max_source_tokens: int = 512
    max_new_tokens: int = 256
    max_encode_tokens: int = 1024  # most positions, padding included, encoded in one step; one source may exceed it


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """What one loaded engine accepts; a request beyond it is refused before it waits."""

    max_source_tokens: int
    max_new_tokens: int
    slots: int


@dataclass(frozen=True, kw_only=True)
class TokenEvent:
    """One step's news of one sequence: a token (and how it ended, if it ended), or the error it died of."""

    sequence_id: int
    token: int | None  # None only where `error` is set
    logprob: float | None = None  # only where the parameters ask for it
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Durations of a finished sequence, in milliseconds."""

    queue_ms: float  # arrival to admission
    encode_ms: float  # admission to the end of its encoder batch
    decode_ms: float  # end of the encoder batch to the last token
    total_ms: float  # arrival to the last token
    time_to_first_token_ms: float  # from arrival
    time_per_output_token_ms: float | None  # mean gap between tokens; None where there is only one token


@dataclass(kw_only=True, eq=False)
class Sequence:
    """All state of one generation.

    Times are `time.monotonic()` seconds, which all processes of one machine share, so a timing may span two.
    """

    # Written by the caller, who also chooses ids that are unique among the sequences of one engine.
    id: int
    source_ids: list[int]
    parameters: GenerationParameters
    arrived_s: float = field(default_factory=time.monotonic)

    # Written by the scheduler.
    status: Status = Status.WAITING
    slot: int | None = None  # the cache row that it owns; None unless running

    # Written by the engine as it commits a step.
    tokens: list[int] = field(default_factory=list)  # without the decoder's start token, with the final eos
    logprobs: list[float] = field(default_factory=list)  # one per token, or empty where not asked for
    finish_reason: FinishReason | None = None
    error: str | None = None  # why it failed
    admitted_s: float | None = None
    encoded_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None  # when it reached any final status

    @property
    def timings(self) -> Timings:
        """Durations of this sequence, which must be finished."""
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
