"""What is noted of one HTTP request on its way, for its line in the log and for its trace. It holds no text."""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from server.engine.interface.parameters import GenerationParameters
from server.errors import ApiError
from server.messages import Finished


class TraceIds(NamedTuple):
    """Of a request's span, as lowercase hexadecimal digits."""

    trace_id: str  # 32
    span_id: str  # 16
    sampled: bool  # whether the span is kept


class RecordedGeneration(Protocol):
    """What is noted of a generation: counts, times and its end."""

    source_ids: list[int]
    parameters: GenerationParameters
    arrived_s: float
    cached: bool

    @property
    def ended(self) -> bool: ...
    @property
    def outcome(self) -> Finished | BaseException: ...


class RecordedRun(NamedTuple):
    """One generation and the variant that it went to."""

    ref: str
    model: str
    variant: str
    mode: str
    generation: RecordedGeneration

    @property
    def finished(self) -> Finished | None:
        """Its answer, if it has one."""
        outcome = self.generation.outcome if self.generation.ended else None
        return outcome if isinstance(outcome, Finished) else None

    @property
    def error(self) -> BaseException | None:
        """What it failed with, if it did."""
        outcome = self.generation.outcome if self.generation.ended else None
        return None if isinstance(outcome, Finished) else outcome


CLIENT_LEFT = 499  # in logs and traces, where the client went before a response was begun; nginx has it so


@dataclass(slots=True)
class RequestRecord:
    """Made when a request comes. Whoever works for it finds it by `current`, in whatever task that is."""

    request_id: str
    method: str
    path: str  # as it was sent, still encoded, without the query
    status: int | None = None  # of the response; None until one is begun
    fault: bool = False  # an exception that nobody expected has ended it
    error: ApiError | None = None  # what the whole request was refused with
    refs: list[str] = field(default_factory=list)  # the variants it was routed to
    runs: list[RecordedRun] = field(default_factory=list)
    trace: TraceIds | None = None
    over: bool = False  # what it has started, such as a worker, may live on and works for nobody then

    @property
    def outcome(self) -> str:
        """As in nash_requests_total: the worst of its generations, or that of the whole request."""
        if self.fault:
            return "error"
        errors = [self.error, *(run.error for run in self.runs)]
        outcomes = {each.outcome if isinstance(each, ApiError) else "error" for each in errors if each is not None}
        for worst in ("error", "timeout", "rejected", "cancelled", "client_error"):
            if worst in outcomes:
                return worst
        if self.status == 503:  # of /health/ready, whose answer that is
            return "rejected"
        status = self.status or CLIENT_LEFT
        if status == CLIENT_LEFT:
            return "cancelled"
        return "error" if status >= 500 else "client_error" if status >= 400 else "ok"

    def fields(self) -> dict[str, Any]:
        """What its line in the log says of its generations: tokens are sums, times those of the slowest."""
        said: dict[str, Any] = {}
        if self.refs:
            said["model"] = self.refs[0] if len(self.refs) == 1 else ",".join(self.refs)
        if not self.runs:
            return said
        answers = [finished for run in self.runs if (finished := run.finished) is not None]
        said["generations"] = len(self.runs)
        said["input_tokens"] = sum(len(run.generation.source_ids) for run in self.runs)
        said["output_tokens"] = sum(len(each.tokens) for each in answers)
        said["cached"] = sum(run.generation.cached for run in self.runs)
        return said | _times(answers)


def _times(answers: Sequence[Finished]) -> dict[str, float]:
    if not answers:
        return {}
    slowest = max((each.timings for each in answers), key=lambda timings: timings.total_ms)
    return {
        "queue_ms": round(slowest.queue_ms, 3),
        "encode_ms": round(slowest.encode_ms, 3),
        "decode_ms": round(slowest.decode_ms, 3),
        "time_to_first_token_ms": round(slowest.time_to_first_token_ms, 3),
    }


_CURRENT: ContextVar[RequestRecord | None] = ContextVar("request", default=None)


def current() -> RequestRecord | None:
    """The request that this task works for; None for what works for none."""
    record = _CURRENT.get()
    return None if record is None or record.over else record


def begin(record: RequestRecord) -> None:
    """From now on this task, and every one that it starts, works for this request."""
    _CURRENT.set(record)
