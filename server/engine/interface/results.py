"""The result of a generation."""

from dataclasses import dataclass
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a generation ended; the values are those of the wire format."""

    EOS = "eos_token"
    LENGTH = "length"
    STOP = "stop_sequence"  # the text reached a stop string: the API process, which has the text, ends it


@dataclass(frozen=True, kw_only=True)
class TopToken:
    """One of the best tokens at a position, whether or not it was chosen."""

    id: int
    logprob: float


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One finished answer."""

    tokens: list[int]  # without the decoder's start token and prefix, with the final end token
    finish_reason: FinishReason
    score: float | None  # a beam's, as in transformers' sequences_scores; the log-probability of one of several samples
    logprobs: list[float]  # one per token; empty if not requested
    top_tokens: list[list[TopToken]]  # the same


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Durations of a finished sequence, in milliseconds."""

    queue_ms: float  # arrival to admission
    encode_ms: float  # admission to the end of its encoder batch
    decode_ms: float  # end of the encoder batch to the last token
    total_ms: float  # arrival to the last token
    time_to_first_token_ms: float  # from arrival
    time_per_output_token_ms: float | None  # mean gap between tokens; None if there is only one token
