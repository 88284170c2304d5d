"""The server's error hierarchy: what a caller can be told, each with its HTTP status and metrics outcome.

Every message names the offending value and what to do about it; the API sends it unchanged.
"""

from typing import ClassVar


class SettingsError(Exception):
    """The server was given invalid settings; nothing was started."""


class StartError(Exception):
    """The server could not start: a model did not load, or the address is taken."""


class ApiError(Exception):
    """Base of all errors that end a request without an answer."""

    status: ClassVar[int] = 500
    error_type: ClassVar[str] = "generation"  # the value of `error_type` on the wire
    outcome: ClassVar[str] = "error"  # the label of nash_requests_total

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s  # sent as Retry-After; None: no such header


class InvalidInputError(ApiError):
    """The request is malformed or asks for something impossible."""

    status, error_type, outcome = 422, "validation", "client_error"


class BodyTooLargeError(ApiError):
    """The body has more bytes than the server accepts."""

    status, error_type, outcome = 413, "too_large", "client_error"


class UnauthorizedError(ApiError):
    """The key is missing or unknown."""

    status, error_type, outcome = 401, "unauthorized", "client_error"


class ForbiddenError(ApiError):
    """The key, the Host or the Origin is not allowed here."""

    status, error_type, outcome = 403, "forbidden", "client_error"


class NotServedError(ApiError):
    """No such variant is loaded, or there is no such route."""

    status, error_type, outcome = 404, "not_found", "client_error"


class MethodNotAllowedError(ApiError):
    """The route exists, but for another method."""

    status, error_type, outcome = 405, "not_found", "client_error"


class ConflictError(ApiError):
    """What is asked for does not fit what is loaded."""

    status, error_type, outcome = 409, "conflict", "client_error"


class NoRoomError(ApiError):
    """There is no memory for it."""

    status, error_type, outcome = 507, "no_room", "rejected"


class OverloadedError(ApiError):
    """The queue is full."""

    status, error_type, outcome = 429, "overloaded", "rejected"


class RateLimitedError(OverloadedError):
    """The key has asked for more than its limits allow."""


class UnavailableError(ApiError):
    """The variant is loading, restarting or failed, or the server is shutting down."""

    status, error_type, outcome = 503, "unavailable", "rejected"


class TimedOutError(ApiError):
    """The request waited, or ran, longer than the server allows."""

    status, error_type, outcome = 504, "timeout", "timeout"


class GenerationError(ApiError):
    """The engine failed on this request."""

    status, error_type, outcome = 424, "generation", "error"


class ClientGoneError(ApiError):
    """The client closed its connection; nobody reads this answer."""

    status, error_type, outcome = 499, "generation", "cancelled"


class InternalError(ApiError):
    """A bug in this program."""
