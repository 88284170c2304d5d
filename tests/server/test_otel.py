"""Spans and metrics of requests, with exporters in memory."""

import logging
import time
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.datastructures import Headers

from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.results import FinishReason, Hypothesis, Timings
from server.errors import ApiError, OverloadedError, SettingsError, TimedOutError
from server.messages import Finished
from server.telemetry.otel import OpenTelemetry, configured
from server.telemetry.request_record import RecordedRun, RequestRecord
from server.telemetry.tracing import tracing_from

SCOPE: dict[str, Any] = {"type": "http", "scheme": "http", "server": ("127.0.0.1", 8000)}
TIMINGS = Timings(
    queue_ms=1.0, encode_ms=2.0, decode_ms=4.0, total_ms=7.0, time_to_first_token_ms=3.5, time_per_output_token_ms=0.5
)
ANSWER = Finished(
    id=1,
    hypotheses=[Hypothesis(tokens=[5, 6, 1], finish_reason=FinishReason.EOS, score=None, logprobs=[], top_tokens=[])],
    timings=TIMINGS,
)


class FakeGeneration:
    """One that has ended."""

    def __init__(self, outcome: Finished | BaseException, *, cached: bool = False, ended: bool = True) -> None:
        self.source_ids = [3, 4, 1]
        self.parameters = GenerationParameters(max_new_tokens=8, do_sample=True, temperature=0.5)
        self.arrived_s = time.monotonic() - 0.1
        self.cached = cached
        self.outcome = outcome
        self.ended = ended


def run(outcome: Finished | BaseException = ANSWER, **state: bool) -> RecordedRun:
    return RecordedRun("m@dense", "m", "dense", "unary", FakeGeneration(outcome, **state))


class Told:
    """What a telemetry has exported."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._metrics = InMemoryMetricReader()
        self.telemetry = OpenTelemetry([SimpleSpanProcessor(self._spans)], [self._metrics])

    def request(
        self,
        *runs: RecordedRun,
        headers: dict[str, str] | None = None,
        status: int = 200,
        error: ApiError | None = None,
    ) -> RequestRecord:
        record = RequestRecord(request_id="r", method="POST", path="/generate")
        span = self.telemetry.begin(record, SCOPE, Headers(headers or {}))
        record.runs += runs
        record.status, record.error = status, error
        span.end(record, SCOPE)
        return record

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._spans.get_finished_spans()

    def counts(self) -> dict[str, int]:
        """How often each metric was recorded."""
        data: Any = self._metrics.get_metrics_data()
        metrics = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
        return {metric.name: sum(point.count for point in metric.data.data_points) for metric in metrics}


def test_a_generation_stands_below_its_request_with_its_parts() -> None:
    told = Told()
    record = told.request(run())
    *phases, generation, request = told.spans
    assert [span.name for span in phases] == ["queue", "encode", "decode"]
    assert (request.kind, generation.kind) == (SpanKind.SERVER, SpanKind.INTERNAL)
    assert request.context is not None
    assert record.trace is not None
    assert f"{request.context.trace_id:032x}" == record.trace.trace_id
    assert generation.parent is not None
    assert generation.parent.span_id == request.context.span_id
    spans_ms = [((span.end_time or 0) - (span.start_time or 0)) / 1e6 for span in (*phases, generation)]
    assert spans_ms == pytest.approx([1.0, 2.0, 4.0, 7.0], abs=1e-3)
    assert generation.attributes is not None
    assert generation.attributes["gen_ai.response.finish_reasons"] == ("eos_token",)
    assert generation.attributes["gen_ai.request.temperature"] == 0.5
    assert generation.attributes["gen_ai.usage.input_tokens"] == 3
    assert told.counts() == {
        "gen_ai.server.request.duration": 1,
        "gen_ai.server.time_to_first_token": 1,
        "gen_ai.server.time_per_output_token": 1,
    }


def test_a_caller_who_does_not_sample_is_followed_and_still_measured() -> None:
    told = Told()
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    record = told.request(run(), headers={"traceparent": parent})
    assert told.spans == ()
    assert record.trace is not None
    assert (record.trace.trace_id, record.trace.sampled) == ("0af7651916cd43dd8448eb211c80319c", False)
    assert told.counts()["gen_ai.server.request.duration"] == 1


@pytest.mark.parametrize(
    "parent", ["", "00-zz-b7ad6b7169203331-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 9999]
)
def test_a_malformed_parent_begins_a_trace_of_its_own(parent: str) -> None:
    told = Told()
    told.request(headers={"traceparent": parent})
    [request] = told.spans
    assert request.parent is None


def test_failures_have_their_type_and_refusals_no_generation() -> None:
    told = Told()
    told.request(run(TimedOutError("late")), status=504)
    generation, request = told.spans
    for span in (generation, request):
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes is not None
        assert span.attributes["error.type"] == "timeout"
    assert told.counts() == {"gen_ai.server.request.duration": 1}
    told.request(status=429, error=OverloadedError("full"))
    refused = told.spans[-1]
    assert refused.status.status_code is StatusCode.UNSET  # the server did what it should
    assert told.counts() == {"gen_ai.server.request.duration": 1}


def test_a_cached_answer_has_a_span_and_no_times() -> None:
    told = Told()
    told.request(run(cached=True))
    assert [span.name for span in told.spans] == ["text_completion m@dense", "POST"]
    assert told.counts() == {}


def test_many_generations_tell_their_parts_as_attributes_alone() -> None:
    told = Told()
    told.request(*(run() for _ in range(17)))
    assert len(told.spans) == 18
    assert told.spans[0].attributes is not None
    assert told.spans[0].attributes["nash.decode_ms"] == 4.0


def test_one_that_has_not_ended_was_given_up() -> None:
    told = Told()
    told.request(run(ended=False))
    assert told.spans[0].attributes is not None
    assert told.spans[0].attributes["error.type"] == "cancelled"


@pytest.mark.parametrize(
    ("environment", "error"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: 'zipkin' is not there: use otlp or none"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' is not there"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: 'grpc' is not there"),
    ],
)
def test_an_exporter_that_is_not_there_is_named(environment: dict[str, str], error: str) -> None:
    with pytest.raises(SettingsError) as caught:
        configured(environment)
    assert error in str(caught.value)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_nothing_is_traced_unless_asked_for(environment: dict[str, str]) -> None:
    assert tracing_from(environment) is None


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "server.telemetry.otel", None)
    with caplog.at_level(logging.WARNING):
        assert tracing_from({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}) is None
    assert "pip install 'nash[otel]'" in caplog.text
