"""Spans and metrics of requests, by OpenTelemetry. Imported only where its variables ask for it.

A request is one server span. Below it stands a span for each generation, named and described by the conventions for
generative models, and below that its queue, encode and decode. All but the first are made when the request has ended,
from the times that its worker measured, so that nothing waits for them.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.metrics import Histogram
from opentelemetry.propagate import extract
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers
from starlette.types import Scope

from server.engine.interface.results import Timings
from server.errors import ApiError, SettingsError
from server.telemetry.request_record import CLIENT_LEFT, RecordedRun, RequestRecord, TraceIds
from server.version import project_version

_OPERATION = "text_completion"
_PROVIDER = "nash"
_MOST_WITH_PHASES = 16  # generations of one request; more tell their times as attributes alone
_STOP_S = 2.0  # for what is still to be sent when the server ends
# The conventions' own bounds begin where a small model has long ended.
_REQUEST_BOUNDS = [0.001, 0.002, 0.005, *(0.01 * 2**power for power in range(14))]
_TOKEN_BOUNDS = [0.0001, 0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5]


def configured(environment: Mapping[str, str]) -> "OpenTelemetry":
    """Exporters as the variables name them; everything else they say is read by OpenTelemetry itself.

    Raises:
        SettingsError: they name an exporter or a protocol that is not there.
    """
    processors: list[SpanProcessor] = []
    readers: list[MetricReader] = []
    if _wanted(environment, "TRACES"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        processors.append(BatchSpanProcessor(OTLPSpanExporter()))
    if _wanted(environment, "METRICS"):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    return OpenTelemetry(processors, readers)


def _wanted(environment: Mapping[str, str], signal: str) -> bool:
    variable = f"OTEL_{signal}_EXPORTER"
    exporter = environment.get(variable, "otlp").strip().lower() or "otlp"
    if exporter not in ("otlp", "none"):
        raise SettingsError(f"{variable}: {exporter!r} is not there: use otlp or none")
    specific = f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"
    variable = specific if environment.get(specific) else "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = environment.get(variable) or "http/protobuf"
    if exporter == "otlp" and protocol != "http/protobuf":
        raise SettingsError(f"{variable}: {protocol!r} is not there: use http/protobuf, on port 4318 as a rule")
    return exporter == "otlp"


class OpenTelemetry:
    """Makes spans and metrics of requests, and hands them to processors and readers."""

    def __init__(self, processors: list[SpanProcessor], readers: list[MetricReader]) -> None:
        resource = Resource.create({SERVICE_VERSION: project_version()})
        if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "nash"}))
        # Neither stops at the interpreter's exit, where nothing bounds how long it waits for a collector.
        self._traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        for processor in processors:
            self._traces.add_span_processor(processor)
        self._meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        self._tracer = self._traces.get_tracer("nash.server", project_version())
        meter = self._meters.get_meter("nash.server", project_version())

        def histogram(name: str, about: str, bounds: list[float]) -> Histogram:
            return meter.create_histogram(
                f"gen_ai.server.{name}", unit="s", description=about, explicit_bucket_boundaries_advisory=bounds
            )

        self._duration = histogram("request.duration", "From a generation's arrival to its answer", _REQUEST_BOUNDS)
        self._first_token = histogram("time_to_first_token", "From its arrival to its first token", _REQUEST_BOUNDS)
        self._output_token = histogram("time_per_output_token", "Between its tokens, on average", _TOKEN_BOUNDS)

    def begin(self, record: RequestRecord, scope: Scope, headers: Headers) -> "OpenTelemetrySpan":
        """Begin the span of a request, below that of its `traceparent`."""
        attributes: dict[str, AttributeValue] = {
            "http.request.method": record.method,
            "url.path": record.path,
            "url.scheme": scope.get("scheme", "http"),
            "nash.request_id": record.request_id,
        }
        if (server := scope.get("server")) is not None:
            attributes |= {"server.address": server[0], "server.port": server[1] or 0}
        span = self._tracer.start_span(
            record.method, extract(headers), kind=SpanKind.SERVER, attributes=attributes, record_exception=False
        )
        context = span.get_span_context()
        record.trace = TraceIds(
            trace.format_trace_id(context.trace_id),
            trace.format_span_id(context.span_id),
            sampled=context.trace_flags.sampled,
        )
        return OpenTelemetrySpan(self, span, record.trace)

    async def stop(self) -> None:
        """Send what is left, for a moment at most: a collector that is away must not hold up the end."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._traces.shutdown()
            self._meters.shutdown(timeout_millis=1e3 * _STOP_S)
            with contextlib.suppress(RuntimeError):  # it took longer, and the loop is closed
                loop.call_soon_threadsafe(sent.set)

        threading.Thread(target=shut_down, daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await sent.wait()

    def add_generation(self, parent: Span, run: RecordedRun, clock: "_Clock", *, phases: bool) -> None:
        """The span of one generation, and of what it consisted of."""
        if not parent.is_recording():
            return
        finished, generation = run.finished, run.generation
        begun_ns = clock.at(generation.arrived_s)
        span = self._tracer.start_span(
            f"{_OPERATION} {run.ref}",
            trace.set_span_in_context(parent),
            start_time=begun_ns,
            attributes=_names(run) | _asked(run),
        )
        if finished is None:
            span.set_status(Status(StatusCode.ERROR, _error_type(run.error)))
            span.set_attribute("error.type", _error_type(run.error))
            span.end()
            return
        timings = finished.timings
        attributes: dict[str, AttributeValue] = {  # each costs some microseconds
            "gen_ai.usage.input_tokens": len(generation.source_ids),
            "gen_ai.usage.output_tokens": len(finished.tokens),
            "gen_ai.response.finish_reasons": [each.finish_reason.value for each in finished.hypotheses],
            "nash.time_to_first_token_ms": timings.time_to_first_token_ms,
        }
        if generation.cached:
            attributes["nash.cached"] = True
        elif phases:
            self._add_phases(span, begun_ns, timings)
        else:
            attributes |= {
                "nash.queue_ms": timings.queue_ms,
                "nash.encode_ms": timings.encode_ms,
                "nash.decode_ms": timings.decode_ms,
            }
        span.set_attributes(attributes)
        span.end(begun_ns + round(1e6 * timings.total_ms))

    def _add_phases(self, parent: Span, begun_ns: int, timings: Timings) -> None:
        context = trace.set_span_in_context(parent)
        at_ns = begun_ns
        for name, ms in (("queue", timings.queue_ms), ("encode", timings.encode_ms), ("decode", timings.decode_ms)):
            phase = self._tracer.start_span(name, context, start_time=at_ns)
            at_ns += round(1e6 * ms)
            phase.end(at_ns)

    def measure(self, run: RecordedRun) -> None:
        """Count one generation in the metrics. A cached answer took no time that would mean anything."""
        finished = run.finished
        attributes = _names(run)
        if finished is None:
            spent_s = time.monotonic() - run.generation.arrived_s
            self._duration.record(spent_s, attributes | {"error.type": _error_type(run.error)})
        elif not run.generation.cached:
            timings = finished.timings
            self._duration.record(timings.total_ms / 1e3, attributes)
            self._first_token.record(timings.time_to_first_token_ms / 1e3, attributes)
            if timings.time_per_output_token_ms is not None:
                self._output_token.record(timings.time_per_output_token_ms / 1e3, attributes)


class OpenTelemetrySpan:
    """The span of one request."""

    def __init__(self, telemetry: OpenTelemetry, span: Span, ids: TraceIds) -> None:
        self._telemetry = telemetry
        self._span = span
        self._ids = ids

    @property
    def response_headers(self) -> Mapping[str, str]:
        """Where the caller finds the trace: W3C's `traceresponse`, in the form of `traceparent`."""
        return {"traceresponse": f"00-{self._ids.trace_id}-{self._ids.span_id}-{int(self._ids.sampled):02x}"}

    def end(self, record: RequestRecord, scope: Scope) -> None:
        """End it, with all that the record has noted."""
        clock = _Clock()
        for run in record.runs:
            self._telemetry.add_generation(self._span, run, clock, phases=len(record.runs) <= _MOST_WITH_PHASES)
            self._telemetry.measure(run)
        span = self._span
        if span.is_recording():
            route = getattr(scope.get("route"), "path", None)
            if route is not None:
                span.update_name(f"{record.method} {route}")
                span.set_attribute("http.route", route)
            status = record.status or CLIENT_LEFT
            span.set_attribute("http.response.status_code", status)
            if record.runs:
                span.set_attributes(_of_all(record))
            if status >= 500 or record.outcome in ("error", "timeout"):
                span.set_attribute("error.type", record.outcome)
                span.set_status(Status(StatusCode.ERROR))
        span.end()


class _Clock:
    """From time.monotonic(), by which requests are measured, to nanoseconds since the epoch."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def at(self, monotonic_s: float) -> int:
        return round(1e9 * monotonic_s) + self._offset_ns


def _names(run: RecordedRun) -> dict[str, AttributeValue]:
    """What spans and metrics of a generation have in common."""
    return {
        "gen_ai.operation.name": _OPERATION,
        "gen_ai.provider.name": _PROVIDER,
        "gen_ai.request.model": run.model,
        "gen_ai.response.model": run.ref,
        "nash.variant": run.variant,
        "nash.mode": run.mode,
    }


def _asked(run: RecordedRun) -> dict[str, AttributeValue]:
    parameters = run.generation.parameters
    attributes: dict[str, AttributeValue] = {
        "gen_ai.request.max_tokens": parameters.max_new_tokens,
        "gen_ai.request.choice.count": parameters.num_return_sequences,
        "nash.num_beams": parameters.num_beams,
    }
    if parameters.do_sample:
        attributes |= {
            "gen_ai.request.temperature": parameters.temperature,
            "gen_ai.request.top_k": parameters.top_k,
            "gen_ai.request.top_p": parameters.top_p,
        }
    return attributes


def _of_all(record: RequestRecord) -> dict[str, AttributeValue]:
    """What the whole request says of its generations."""
    said = record.fields()
    return {
        "gen_ai.operation.name": _OPERATION,
        "gen_ai.request.model": record.runs[0].model,
        "gen_ai.response.model": ",".join(dict.fromkeys(run.ref for run in record.runs)),
        "gen_ai.usage.input_tokens": said["input_tokens"],
        "gen_ai.usage.output_tokens": said["output_tokens"],
        "nash.generations": said["generations"],
    }


def _error_type(error: BaseException | None) -> str:
    if error is None:
        return "cancelled"
    return error.error_type if isinstance(error, ApiError) else type(error).__name__
