"""Whether requests are traced. Without OpenTelemetry's variables nothing of it is imported."""

import logging
from collections.abc import Mapping
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import Scope

from server.telemetry.request_record import RequestRecord

# Each of these asks for something to be sent.
_ASKING = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
    "OTEL_METRICS_EXPORTER",
)
_logger = logging.getLogger(__name__)


class TracedRequest(Protocol):
    """The span of one request."""

    @property
    def response_headers(self) -> Mapping[str, str]: ...
    def end(self, record: RequestRecord, scope: Scope) -> None: ...


class Tracing(Protocol):
    """Makes spans and metrics of requests and sends them."""

    def begin(self, record: RequestRecord, scope: Scope, headers: Headers) -> TracedRequest: ...
    async def stop(self) -> None: ...


def tracing_from(environment: Mapping[str, str]) -> Tracing | None:
    """What OpenTelemetry's own variables ask for; None if they ask for nothing, or its packages are missing."""
    asking = [name for name in _ASKING if environment.get(name, "none").strip().lower() not in ("", "none")]
    if not asking or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    try:
        from server.telemetry.otel import configured
    except ImportError:
        _logger.warning("%s is set, but nothing is sent: pip install 'nash[otel]'", asking[0])
        return None
    return configured(environment)
