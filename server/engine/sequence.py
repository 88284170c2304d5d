"""One generation, from request to last token, and the small types around it.

Needs no torch: the API process, which holds none, shares these types with the engine.
"""

import time
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from server.engine.decoding import Decoding


class FinishReason(StrEnum):
    """Why a generation ended; the values are those of the wire format."""

    EOS = "eos_token"
    LENGTH = "length"
    STOP = "stop_sequence"  # a stop string came in the text: the API process, which has the text, ends it


class Status(StrEnum):
    """Where a sequence is in its life. The last three are final."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class GenerationParameters:
    """How one generation is decoded; the names are transformers' where it has one, and so is what they do.

    The defaults change nothing: greedy decoding. What a model's own generation_config.json says comes in through
    `GenerationDefaults`.
    """

    max_new_tokens: int
    min_new_tokens: int = 0  # no end token before so many others
    ignore_eos: bool = False  # go on to max_new_tokens whatever comes: forced lengths, for measurements
    prefix_ids: tuple[int, ...] = ()  # stand after the decoder's start token; what is generated goes on from them

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    typical_p: float = 1.0
    seed: int | None = None  # None: drawn at admission

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1  # so many of the beams, or so many samples

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0  # 0: n-grams may repeat
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that must not come
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()  # only as the first token that is not forced
    forced_bos_token_id: int | None = None  # the first token; no prefix stands before it, else it is not forced
    forced_eos_token_ids: tuple[int, ...] = ()  # the token at max_new_tokens is one of these
    renormalize_logits: bool = False

    logprobs: bool = False  # also give each token's natural-log probability, as the model said it before all the above
    top_n_tokens: int = 0  # also give so many of the model's best tokens at each position

    @property
    def prompt(self) -> int:
        """How many tokens the decoder is given before it generates any: its start token and the prefix."""
        return 1 + len(self.prefix_ids)

    @property
    def rows(self) -> int:
        """How many cache slots a generation owns: one a beam, or one a sample."""
        return self.num_beams if self.num_beams > 1 else self.num_return_sequences


MOST_THREADS = 1024  # far more than pays; a hundred thousand take the system down with them


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a model is loaded; fixed for the life of its engine."""

    dtype: str = "float32"  # see `capabilities`; "auto", for `dtype_choice`, is never what an engine runs in
    device: str = "cpu"
    backend: str = "auto"  # "native", our operator for CPUs; "torch"; "auto" takes the first that can
    graphs: str = "auto"  # steps recorded once and replayed: "auto" is "on" on CUDA, else "off"
    quantization: str = "none"  # "bnb-int8", "bnb-nf4": the layers' weights by bitsandbytes, computing in `dtype`
    threads: int | None = None  # None: as many as torch has, within the quota; natively, those of one memory node
    slots: int = 32  # how many sequences can run at once
    max_source_tokens: int = 512
    max_new_tokens: int = 256
    max_encode_tokens: int = 1024  # most positions, padding included, encoded in one step; one source may exceed it
    max_decode_tokens: int = 512  # most tokens that enter the decoder in one step; one sequence may exceed it
    # Where all that run are greedy, steps are run for so long before anybody looks at them: a small model's step takes
    # less than what surrounds it. It is how much later a newcomer may begin. 0: never; CUDA has graphs instead.
    ahead_s: float = 0.001

    def within(self, positions: int | None) -> "EngineConfig":
        """For a model with so many positions: neither sources nor targets are longer. None: it has any number."""
        if positions is None:
            return self
        return replace(
            self,
            max_source_tokens=min(self.max_source_tokens, positions),
            max_new_tokens=min(self.max_new_tokens, positions),
        )


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """What one loaded engine accepts; a request beyond it is refused before it waits."""

    max_source_tokens: int
    max_new_tokens: int  # with the decoder prefix
    slots: int

    @classmethod
    def of(cls, config: EngineConfig) -> "EngineLimits":
        """Of an engine that is loaded so."""
        return cls(max_source_tokens=config.max_source_tokens, max_new_tokens=config.max_new_tokens, slots=config.slots)


@dataclass(frozen=True, kw_only=True)
class TopToken:
    """One of the best tokens at a position, whether or not it was chosen."""

    id: int
    logprob: float


@dataclass(frozen=True, kw_only=True)
class TokenEvent:
    """News of one sequence: a token (and how it ended, if it ended), or the error it died of.

    Beams and parallel samples give no token as they go: their one event says that they are done.
    """

    sequence_id: int
    token: int | None
    made_s: float  # time.monotonic() of the end of the step that it is of
    logprob: float | None = None  # only where the parameters ask for it
    top_tokens: list[TopToken] = field(default_factory=list)  # best first; empty where not asked for
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One finished answer."""

    tokens: list[int]  # without the decoder's start token and prefix, with the final end token
    finish_reason: FinishReason
    score: float | None  # of a beam as transformers' sequences_scores; of one of several samples, its log-probability
    logprobs: list[float]  # one per token, or empty where not asked for
    top_tokens: list[list[TopToken]]  # the same


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Durations of a finished sequence, in milliseconds."""

    queue_ms: float  # arrival to admission
    encode_ms: float  # admission to the end of its encoder batch
    decode_ms: float  # end of the encoder batch to the last token
    total_ms: float  # arrival to the last token
    time_to_first_token_ms: float  # from arrival
    time_per_output_token_ms: float | None  # mean gap between tokens; None where there is only one token


@dataclass(kw_only=True, eq=False, slots=True)
class Row:
    """One line of a sequence's decoding, which owns a cache slot: the only one, a sample, or a beam."""

    sequence: "Sequence"
    index: int  # among the sequence's rows

    # Written by the scheduler.
    slot: int | None = None  # None unless running

    # Written by the engine as it commits a step.
    history: list[int]  # the start token, the prefix, what was generated; all but the last `fresh` are in the cache
    fresh: int  # how many of them the decoder has not seen: the prefix at first, one token later
    logprobs: list[float] = field(default_factory=list)  # of what was generated
    top_tokens: list[list[TopToken]] = field(default_factory=list)

    @property
    def made(self) -> int:
        """How many tokens were generated."""
        return len(self.history) - self.sequence.parameters.prompt

    @property
    def generated(self) -> list[int]:
        """The tokens that were generated."""
        return self.history[self.sequence.parameters.prompt :]

    @property
    def decoding(self) -> "Decoding":
        """How its sequence is decoded."""
        return self.sequence.decoding

    def append(self, token: int, logprob: float | None, top_tokens: list[TopToken]) -> None:
        """Take what a step has generated; `logprob` and `top_tokens` where they are kept."""
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

    # Written by the caller, who also chooses ids that are unique among the sequences of one engine.
    id: int
    source_ids: list[int]
    parameters: GenerationParameters
    arrived_s: float = field(default_factory=time.monotonic)

    # Written by the scheduler.
    status: Status = Status.WAITING
    overtaken: int = 0  # how many later arrivals were admitted before it

    # Written by the engine as it takes the sequence in, and as it commits a step.
    decoding: "Decoding" = field(init=False, repr=False)
    rows: list[Row] = field(default_factory=list)  # those that still run, or wait to
    hypotheses: list[Hypothesis] = field(default_factory=list)  # best first, once finished
    tokens: list[int] = field(
        default_factory=list
    )  # of the only row as they come; else of the best hypothesis, at last
    logprobs: list[float] = field(default_factory=list)  # one per token, or empty where not asked for
    finish_reason: FinishReason | None = None  # the best hypothesis's
    error: str | None = None  # why it failed
    admitted_s: float | None = None
    encoded_s: float | None = None
    first_token_s: float | None = None  # of beams and parallel samples: when the first step was done
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

    def begin(self, start_id: int) -> None:
        """Lay out the rows, before the sequence waits; `start_id` is the decoder's start token."""
        history = [start_id, *self.parameters.prefix_ids]
        self.rows = [
            Row(sequence=self, index=i, history=list(history), fresh=len(history)) for i in range(self.parameters.rows)
        ]
