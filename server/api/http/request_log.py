"""Notes every request, and tells the log and the trace how it ended."""

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.settings import Settings
from server.telemetry.request_record import CLIENT_LEFT, RequestRecord, begin
from server.telemetry.tracing import TracedRequest, Tracing

_LONGEST_PATH = 256  # characters
_LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})  # monitors and browsers, which nobody wants to trace
_logger = logging.getLogger("server.access")


class RequestLog:
    """One line for each request with `--access-log`; without it, for those alone that the server failed."""

    def __init__(self, app: ASGIApp, *, settings: Settings, tracing: Tracing | None) -> None:
        self._app = app
        self._settings = settings
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived_s = time.monotonic()
        path = scope.get("raw_path") or scope["path"].encode()
        record = RequestRecord(
            request_id=scope["nash.request_id"],
            method=scope["method"],
            path=path[:_LONGEST_PATH].decode("ascii", "replace"),
        )
        begin(record)
        traced = None
        if self._tracing is not None and record.method not in _LOOKING:
            traced = self._tracing.begin(record, scope, Headers(scope=scope))

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                if traced is not None:
                    MutableHeaders(scope=message).update(traced.response_headers)
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except Exception:
            record.fault = True  # uvicorn logs the traceback, and answers with 500 where nothing was sent yet
            record.status = record.status or 500
            raise
        finally:
            record.status = record.status or CLIENT_LEFT
            self._tell(record, scope, arrived_s, traced)

    def _tell(self, record: RequestRecord, scope: Scope, arrived_s: float, traced: TracedRequest | None) -> None:
        failed = record.outcome in ("error", "timeout")
        if failed or self._settings.access_log:
            client = scope.get("client")
            fields = {
                "method": record.method,
                "path": record.path,
                "status": record.status,
                "outcome": record.outcome,
                "duration_ms": round(1e3 * (time.monotonic() - arrived_s), 3),
                "client": client[0] if client else "",
                "request_id": record.request_id,
                **record.fields(),
            }
            if failed:
                errors = (record.error, *(run.error for run in record.runs))
                fields["error"] = next(
                    (str(each) for each in errors if each is not None), "a fault: the log has its traceback"
                )
            _logger.log(logging.WARNING if failed else logging.INFO, "request", extra={"fields": fields})
        if traced is not None:
            traced.end(record, scope)
        record.over = True
