"""The error tree of the server: what a caller can be told, with the HTTP status and the metrics' outcome of each.

Every message names the offending value and what to do about it; the API sends it as it stands.
"""

from typing import ClassVar


class SettingsError(Exception):
    """The server was started with something that makes no sense; nothing was started."""


class StartError(Exception):
    """The server could not start: a model did not load, the address is taken."""


class RequestError(Exception):
    """Base of everything that ends a request without an answer."""

    status: ClassVar[int] = 500
    error_type: ClassVar[str] = "generation"  # the value of `error_type` on the wire
    outcome: ClassVar[str] = "error"  # the label of nash_requests_total

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s  # when to come back; None: as it is, never


class InvalidRequestError(RequestError):
    """The request is malformed or asks for what cannot be done."""

    status, error_type, outcome = 422, "validation", "client_error"


class BodyTooLargeError(RequestError):
    """The body has more bytes than the server reads."""

    status, error_type, outcome = 413, "validation", "client_error"


class UnauthorizedError(RequestError):
    """No key, or one that is not known."""

    status, error_type, outcome = 401, "unauthorized", "client_error"


class ForbiddenError(RequestError):
    """The key, the Host or the Origin is known and not allowed here."""

    status, error_type, outcome = 403, "unauthorized", "client_error"


class NotFoundError(RequestError):
    """No such variant is loaded, or no such route."""

    status, error_type, outcome = 404, "not_found", "client_error"


class MethodNotAllowedError(RequestError):
    """The route is there, for another method."""

    status, error_type, outcome = 405, "not_found", "client_error"


class OverloadedError(RequestError):
    """The queue is full."""

    status, error_type, outcome = 429, "overloaded", "rejected"


class UnavailableError(RequestError):
    """The variant is loading, restarting or failed, or the server is shutting down."""

    status, error_type, outcome = 503, "unavailable", "rejected"


class TimedOutError(RequestError):
    """The request waited, or ran, longer than the server allows."""

    status, error_type, outcome = 504, "timeout", "timeout"


class GenerationError(RequestError):
    """The engine failed on this request."""

    status, error_type, outcome = 424, "generation", "error"


class ClientGoneError(RequestError):
    """The client closed its connection; nobody reads this."""

    status, error_type, outcome = 499, "generation", "cancelled"


class InternalError(RequestError):
    """A fault of this program."""
