"""What every request passes through before its route, as plain ASGI. `app.py` sets the order."""

import os
import re
from contextlib import ExitStack
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.http.body import KEY_USE
from server.api.http.errors import error_response
from server.api.http.keys import KeyRing
from server.api.http.keys import Scope as KeyScope
from server.errors import ApiError, BodyTooLargeError, ForbiddenError, OverloadedError, RateLimitedError
from server.frontend.service import Service
from server.settings import Settings

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_OPEN_PATHS = (
    "/",
    "/docs",
    "/openapi.json",
    "/health",
    "/health/ready",
)  # readable without a key, like every path with the prefix below
_OPEN_PREFIX = "/page/"
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class RequestId:
    """Gives every response an `x-request-id`: the caller's own if valid, otherwise a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else os.urandom(8).hex()
        scope["nash.request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class HeadAsGet:
    """Answers HEAD like GET, for monitors that need only the status. The HTTP server drops the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class SameSite:
    """Refuses requests that a web page of another site could send to a server on this machine.

    Without keys, anyone who can connect may call, and every page in a browser on this machine can connect: by DNS
    rebinding, which shows in Host, or across origins, which shows in Origin.
    """

    def __init__(self, app: ASGIApp, *, host: str) -> None:
        self._app = app
        self._names = _LOOPBACK_NAMES | {host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(Headers(scope=scope))
            except ForbiddenError as error:
                await error_response(error, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if _host_name(host) not in self._names:
            raise ForbiddenError(
                f"Host {host!r} is not this machine: call 127.0.0.1 or localhost, "
                "or start the server with --api-keys or --allow-unauthenticated"
            )
        if origin is not None and origin.lower() != f"http://{host.lower()}":
            raise ForbiddenError(f"Origin {origin!r} is another site: call from the page at http://{host}/")


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


class KeyCheck:
    """Requires a key, except for health, for what describes the routes, and for the page's own files.

    POST requests count against the key's limits.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing, service: Service) -> None:
        self._app = app
        self._keys = keys
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        authorization = Headers(scope=scope).get("authorization")
        with ExitStack() as stack:
            try:
                if scope["method"] == "POST":
                    scope = {**scope, KEY_USE: stack.enter_context(self._keys.open_request(authorization))}
                else:
                    self._keys.check(authorization, KeyScope.INFER)
            except ApiError as error:
                response = error_response(error, scope["path"])
                if isinstance(error, RateLimitedError):
                    self._service.metrics.refused(error.outcome)
                else:
                    response.headers["www-authenticate"] = "Bearer"
                await response(scope, receive, send)
                return
            await self._app(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    if f"{scope['method']} {path}" == "POST /translate":  # its key may be in the body: the route checks
        return True
    return scope["method"] == "GET" and (path in _OPEN_PATHS or path.startswith(_OPEN_PREFIX))


class OpenRequests:
    """Counts the POST requests in progress, and refuses new ones once the server was told to stop."""

    def __init__(self, app: ASGIApp, *, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            with self._service.open_request():
                await self._app(scope, receive, send)
        except ApiError as error:
            await error_response(error, scope["path"])(scope, receive, send)


class BodyLimit:
    """Limits bodies by counting their bytes as they arrive, whatever their headers claim: each, and all together."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._arriving_bytes = 0  # of bodies whose end has not come

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received_bytes = held_bytes = 0

        async def receive_counted() -> Message:
            nonlocal received_bytes, held_bytes
            message = await receive()
            size = len(message.get("body", b""))
            received_bytes += size
            most = self._settings.max_body_bytes
            if received_bytes > most:
                raise BodyTooLargeError(f"the body has more than {most} bytes: send less at once")
            held_bytes += size
            self._arriving_bytes += size
            if not message.get("more_body", False):
                self._arriving_bytes -= held_bytes
                held_bytes = 0
            elif self._arriving_bytes > self._settings.max_bodies_bytes:
                raise OverloadedError("too many long bodies are arriving: try again in a moment", retry_after_s=1)
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            self._arriving_bytes -= held_bytes
