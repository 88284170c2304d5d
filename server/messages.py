"""The protocol between the API process and a worker: typed messages in length-prefixed msgpack frames.

A frame is a four-byte big-endian length followed by that many bytes of msgpack. Commands go to the worker, and
reports come back. For a request that is not streamed, a worker reports nothing until the request is done.
"""

from collections.abc import Iterator, Sequence

import msgspec

from server.engine.interface.config import EngineConfig, EngineLimits
from server.engine.interface.generation_config import GenerationDefaults
from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.results import FinishReason, Hypothesis, Timings, TopToken

MAX_FRAME_BYTES = 64 * 1024 * 1024
_LENGTH_BYTES = 4


class Load(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The first command: load this model. Answered by `Ready` or `LoadFailed`."""

    directory: str
    config: EngineConfig
    files: tuple[tuple[str, str, int], ...] = ()  # name, sha256 and size of each file of a version in the store


class Submit(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Run one generation. Unless it is cancelled, it is answered by exactly one `Finished` or `Failed`."""

    id: int  # unique for the life of the worker
    source_ids: list[int]
    parameters: GenerationParameters  # with the seed, so that a second run gives the same text
    stream: bool  # report each token as it is made; beams and multiple samples are reported at the end
    arrived_s: float  # time.monotonic(), which all processes of a machine share
    queued_s: float  # when it was sent, from which its waiting counts
    queue_limit_s: float  # how long it may wait for a slot
    reuses_source: bool = False  # whether its source may be one that was encoded before
    owner: int = 0  # the same for all generations of one request
    batch: bool = False  # whether it makes way for others


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stop this generation and report nothing more about it. Unknown ids are ignored: they may just have ended."""

    id: int


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Are you at work? Answered by `Pong` between two steps; only a worker that hangs does not."""


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The answer to `Ping`."""


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The model is loaded."""

    limits: EngineLimits
    defaults: GenerationDefaults  # the model's own values for what a request leaves out
    memory_bytes: dict[str, int]  # by kind: weights, cache
    load_s: float


class LoadFailed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The model cannot be loaded; the worker exits after this."""

    error: str
    damaged: bool = False  # its files are not those that were published


class TokenReport(msgspec.Struct, frozen=True, array_like=True):
    """One token of one streamed generation."""

    id: int
    token: int
    logprob: float | None
    top_tokens: list[TopToken]  # empty if not requested
    at_ms: float  # when it was made, counted from the request's arrival
    queue_ms: float  # as in Timings: if a stop string ends the text at this token, its Timings are built from these
    encode_ms: float


class Tokens(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The tokens of one or more steps, for all streamed generations. A last token comes only in `Finished`."""

    reports: list[TokenReport]


class Finished(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A generation has ended; this is everything it produced."""

    id: int
    hypotheses: list[Hypothesis]  # best first; more than one only if requested
    timings: Timings

    @property
    def tokens(self) -> list[int]:
        """The tokens of the best answer, with its end token."""
        return self.hypotheses[0].tokens

    @property
    def logprobs(self) -> list[float]:
        """One for each token of the best answer; empty if not requested."""
        return self.hypotheses[0].logprobs

    @property
    def finish_reason(self) -> FinishReason:
        """Why the best answer ended."""
        return self.hypotheses[0].finish_reason


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A generation was refused or failed."""

    id: int
    kind: str  # "validation", "timeout" or "generation": the error_type on the wire
    error: str


class Stats(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What has happened since the last `Stats`, and the current state."""

    decode_step_s: list[float]
    encode_s: list[float]
    batch_sizes: list[int]  # rows in each decode step
    source_tokens: int
    padding_tokens: int
    generated_tokens: int
    running: int
    waiting: int
    cache_used_ratio: dict[str, float]  # by kind: self, cross
    peak_bytes: int  # the worker process's peak memory
    steps_by_path: dict[str, int]  # "graph" and "eager"; empty if the engine has no graphs
    source_lookups: dict[str, int]  # "hit" and "miss": sources that were, or were not, encoded before; 0 where unasked


Command = Load | Submit | Cancel | Ping
Report = Ready | LoadFailed | Tokens | Finished | Failed | Stats | Pong


class ProtocolError(Exception):
    """The other side sent bytes that are not a frame, or a frame that is not a message."""


class FrameBuffer:
    """Splits a byte stream into the payloads of its frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the payload of every frame that `data` completes.

        Raises:
            ProtocolError: a frame claims more than MAX_FRAME_BYTES; the rest of the stream cannot be read.
        """
        self._bytes += data
        start = 0
        try:
            while len(self._bytes) - start >= _LENGTH_BYTES:
                body = start + _LENGTH_BYTES
                length = int.from_bytes(self._bytes[start:body], "big")
                if length > MAX_FRAME_BYTES:
                    raise ProtocolError(f"a frame of {length} bytes: at most {MAX_FRAME_BYTES} are read")
                if len(self._bytes) < body + length:
                    break
                start = body + length
                yield bytes(self._bytes[body:start])
        finally:
            del self._bytes[:start]


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)  # msgspec lets the latter through
_encoder = msgspec.msgpack.Encoder()
_command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def encode(messages: Sequence[Command | Report]) -> bytes:
    """Encode `messages` as consecutive frames, to be written at once.

    An answer that no frame can hold is replaced by its failure, since the other side would close the connection.
    """
    frames = bytearray()
    for message in messages:
        payload = _encoder.encode(message)
        if len(payload) > MAX_FRAME_BYTES:
            assert isinstance(message, Finished), f"a {type(message).__name__} of {len(payload)} bytes"
            error = f"the answer has {len(payload)} bytes: ask for fewer tokens, sequences or top_n_tokens"
            payload = _encoder.encode(Failed(id=message.id, kind="validation", error=error))
        frames += len(payload).to_bytes(_LENGTH_BYTES, "big") + payload
    return bytes(frames)


def decode_command(payload: bytes) -> Command:
    """Decode the payload of a frame sent to a worker.

    Raises:
        ProtocolError: it is not a command.
    """
    try:
        return _command_decoder.decode(payload)
    except _UNREADABLE as error:
        raise ProtocolError(f"not a command: {error}") from error


def decode_report(payload: bytes) -> Report:
    """Decode the payload of a frame sent by a worker.

    Raises:
        ProtocolError: it is not a report.
    """
    try:
        return _report_decoder.decode(payload)
    except _UNREADABLE as error:
        raise ProtocolError(f"not a report: {error}") from error


def id_of_malformed(payload: bytes) -> int | None:
    """The id of a `Submit` that cannot be decoded otherwise, so that it can still be answered."""
    try:
        fields = msgspec.msgpack.decode(payload)
    except _UNREADABLE:
        return None
    match fields:
        case ["Submit", int(request_id), *_] if not isinstance(request_id, bool):
            return request_id
    return None
