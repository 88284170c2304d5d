"""Server-sent events: one `data:` line per document, and comments to fill silences."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.http.disconnect import client_gone
from server.api.http.errors import error_document
from server.api.http.json_response import to_json
from server.errors import ApiError

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy that buffers events would undo the streaming
]
_KEEP_ALIVE = b": keep-alive\n\n"


class EventStreamResponse(Response):
    """Sends documents as they are made.

    The response begins with the first event or keep-alive comment. An error before that is an ordinary HTTP error; a
    later one is sent as the last event. If the client disconnects, the iterator is closed at once.
    """

    def __init__(
        self, events: AsyncIterator[dict[str, Any]], *, keep_alive_s: float, path: str = "", end: bytes = b""
    ) -> None:
        """`path` decides the form of an error; `end` is sent after the last event, unless that is an error."""
        super().__init__()
        self._path = path
        self._end = end
        self._events = events
        self._keep_alive_s = keep_alive_s
        self._begun = False
        self._silent = True  # whether nothing was sent since the last keep-alive check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [
            asyncio.create_task(self._send_events(send)),
            asyncio.create_task(self._send_comments(send)),
            asyncio.create_task(client_gone(receive)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.exception()  # mark it as retrieved: the first task's exception was raised above

    async def _send_events(self, send: Send) -> None:
        try:
            async with contextlib.aclosing(self._events) as events:  # type: ignore[type-var]
                async for event in events:
                    await self._send(send, b"data:" + to_json(event) + b"\n\n")
            if self._end:
                await self._send(send, self._end)
        except ApiError as error:
            if not self._begun:
                raise
            await self._send(send, b"data:" + to_json(error_document(error, self._path)) + b"\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_comments(self, send: Send) -> None:
        while True:
            self._silent = True
            await asyncio.sleep(self._keep_alive_s)
            if self._silent:
                await self._send(send, _KEEP_ALIVE)

    async def _send(self, send: Send, data: bytes) -> None:
        self._silent = False
        if not self._begun:
            self._begun = True
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": data, "more_body": True})


async def made_ahead(events: AsyncIterator[dict[str, Any]]) -> AsyncGenerator[dict[str, Any], None]:
    """The same events, produced without waiting for the reader, so that what the producer holds is released early."""
    made: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def make() -> None:
        try:
            async with contextlib.aclosing(events):  # type: ignore[type-var]
                async for event in events:
                    made.put_nowait(event)
        finally:
            made.put_nowait(None)

    maker = asyncio.create_task(make())
    try:
        while (event := await made.get()) is not None:
            yield event
        await maker
    finally:
        maker.cancel()
        await asyncio.wait([maker])
