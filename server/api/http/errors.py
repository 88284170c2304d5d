"""Turn an error into a response: a status and `{"error", "error_type"}`."""

import math
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from server.api.http.json_response import AsciiJsonResponse
from server.errors import (
    ApiError,
    BodyTooLargeError,
    ClientGoneError,
    InternalError,
    InvalidInputError,
    MethodNotAllowedError,
    NotServedError,
)
from server.telemetry.request_record import current

OPENAI_PREFIX = "/v1/"
TRANSLATE_PATHS = ("/translate", "/languages")
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_FIELD = re.compile(r"([a-z_]+)[\[. ]")  # what our messages begin with if they are about a field


def error_document(error: ApiError, path: str = "") -> dict[str, Any]:
    """The error as callers of a path read it, in a body or as an event of a stream."""
    if path in TRANSLATE_PATHS:
        return {"error": str(error)}
    if not path.startswith(OPENAI_PREFIX):
        return {"error": str(error), "error_type": error.error_type}
    field = _FIELD.match(str(error))
    return {
        "error": {
            "message": str(error),
            "type": _OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error"),
            "param": field[1] if field and error.status == InvalidInputError.status else None,
            "code": error.error_type,
        }
    }


def error_response(error: ApiError, path: str = "") -> Response:
    """The whole response for callers of a path, with Retry-After if a retry makes sense."""
    if (record := current()) is not None:
        record.error = error
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, BodyTooLargeError):
        headers["connection"] = "close"  # otherwise the client could go on sending a body that nobody reads
    return AsciiJsonResponse(error_document(error, path), status_code=status_of(error, path), headers=headers)


def status_of(error: ApiError, path: str) -> int:
    """The error's status for callers of a path: OpenAI's and LibreTranslate's clients expect 400 for 422."""
    foreign = path.startswith(OPENAI_PREFIX) or path in TRANSLATE_PATHS
    return 400 if foreign and error.status == InvalidInputError.status else error.status


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error: RequestErrors, what the router itself refuses, disconnects and bugs."""
    app.add_exception_handler(ApiError, _on_request_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_parameter)
    app.add_exception_handler(ClientDisconnect, _on_client_disconnect)
    app.add_exception_handler(Exception, _on_fault)


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, request.url.path)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Only the router raises these: there is no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        response = error_response(MethodNotAllowedError(f"{request.method} {path} is not served: use {allowed}"), path)
        response.headers["allow"] = allowed
        return response
    return error_response(NotServedError(f"{path} is not served: GET /openapi.json lists what is"), path)


async def _on_parameter(request: Request, error: Exception) -> Response:
    """A parameter of the path or the query does not fit; the first one is told."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    what = f"{fault['loc'][-1]} is {str(fault.get('input'))[:40]!r}: {fault['msg'].removeprefix('Input ')}"
    return error_response(InvalidInputError(what), request.url.path)


async def _on_client_disconnect(request: Request, error: Exception) -> Response:
    """The client disconnected while it was still sending; nobody reads this answer."""
    return error_response(ClientGoneError("the client closed its connection"), request.url.path)


async def _on_fault(request: Request, error: Exception) -> Response:
    """A bug in this program. The log has the traceback; the caller learns no internals."""
    return error_response(
        InternalError("an internal error: report it to the operator, the server's log says more"), request.url.path
    )
