"""An OTLP/HTTP collector that keeps what it is sent, for tests."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class OtlpCollector:
    """What has come, decoded from the protocol buffers of the wire."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.metrics: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.faults: list[str] = []
        self._come = threading.Condition()

    def take(self, path: str, body: bytes) -> None:
        """Keep one request's content."""
        with self._come:
            if path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    self.resources.append({each.key: each.value.string_value for each in resource.resource.attributes})
                    self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            elif path == "/v1/metrics":
                for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    self.metrics += [metric for scope in resource.scope_metrics for metric in scope.metrics]
            else:
                self.faults.append(path)
            self._come.notify_all()

    def trace(self, trace_id: str, spans: int, timeout_s: float = 30.0) -> list[Any]:
        """The spans of a trace, once so many have come."""
        with self._come:
            found = self._come.wait_for(lambda: len(self._of(trace_id)) >= spans, timeout_s)
            assert found, f"{len(self._of(trace_id))} spans of {trace_id} came"
            return self._of(trace_id)

    def metric(self, name: str, timeout_s: float = 30.0) -> Any:
        """A metric, once it has come."""
        with self._come:
            assert self._come.wait_for(lambda: any(each.name == name for each in self.metrics), timeout_s)
            return next(each for each in self.metrics if each.name == name)

    def _of(self, trace_id: str) -> list[Any]:
        return [span for span in self.spans if span.trace_id.hex() == trace_id]


@contextmanager
def collecting() -> Iterator[tuple[str, OtlpCollector]]:
    """A collector and the address at which it listens."""
    collector = OtlpCollector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            collector.take(self.path, body)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing: the tests' output is not for it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", collector
        server.shutdown()
