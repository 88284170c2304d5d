"""Uvicorn's HTTP protocol, with bounds on what a client can hold: time, headers, connections.

Uvicorn waits for ever for a head or a body, reads headers of any size, and takes as many connections as come. A client
that is slow, or only pretends to send, would so take memory and descriptors from the others.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.api.http.json_response import to_json


@dataclass(kw_only=True)
class ClientLimits:
    """What one client, and all together, may take. Changed in place when the settings are read again."""

    max_header_bytes: int  # of a request line with its headers
    max_connections: int
    header_s: float  # for them to arrive, from the connection or their first byte on
    transfer_s: float  # for a body to arrive; for a client to take in what was written


class _Reading(Enum):
    NOTHING = auto()  # between two requests, or while one is answered
    HEAD = auto()
    BODY = auto()


def bounded_protocol(limits: ClientLimits) -> Callable[..., "BoundedHttpProtocol"]:
    """What Uvicorn makes its connections with."""
    return partial(BoundedHttpProtocol, limits=limits)


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, limits: ClientLimits, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._limits = limits
        self._reading = _Reading.NOTHING
        self._head_bytes = 0
        self._trailer_bytes = 0
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # What the event loop calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections and not self._close_an_idle_one():
            self._refuse(503, "unavailable", "too many connections are open: try again in a moment")
            return
        self._expect(_Reading.HEAD)

    def data_received(self, data: bytes) -> None:
        if self._reading is _Reading.NOTHING:
            self._expect(_Reading.HEAD)
        while data and not self.transport.is_closing():
            if self._reading is _Reading.BODY:
                super().data_received(data)
                return
            # No more at once than a head may have, since a body may follow in the same bytes.
            room = self._limits.max_header_bytes - self._head_bytes
            if room <= 0:
                most = self._limits.max_header_bytes
                self._refuse(431, "too_large", f"the headers have more than {most} bytes: send less")
                return
            self._head_bytes += min(room, len(data))
            super().data_received(data[:room])
            data = data[room:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(_Reading.NOTHING)
        self._stop_write_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.transfer_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    # What the parser calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._reading is _Reading.NOTHING:  # one request right behind another
            self._expect(_Reading.HEAD)

    def on_headers_complete(self) -> None:
        self._expect(_Reading.BODY)
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is not _Reading.BODY:
            super().on_header(name, value)
            return
        self._trailer_bytes += len(name) + len(value)  # behind a chunked body, where nobody reads them
        if self._trailer_bytes > self._limits.max_header_bytes:
            most = self._limits.max_header_bytes
            self._refuse(431, "too_large", f"the trailers have more than {most} bytes: send less")

    def on_message_complete(self) -> None:
        self._expect(_Reading.NOTHING)
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "validation", "this is not HTTP, or not well formed: send a valid request")

    # Ours

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _behind_another(self) -> bool:
        """Whether what is being read came before an earlier request was answered: its time has not begun."""
        return bool(self.pipeline) or (self._reading is _Reading.HEAD and self._answering)

    @property
    def idle(self) -> bool:
        """Whether a request was answered and no further one has begun."""
        return self._reading is _Reading.NOTHING and self.cycle is not None and not self._answering

    def refuse_unfinished(self) -> None:
        """End a connection whose request has not wholly arrived: the server is about to stop."""
        if self._reading is not _Reading.NOTHING and not self._behind_another:
            self._refuse(503, "unavailable", "the server is shutting down: send the request again in a moment")

    def _close_an_idle_one(self) -> bool:
        others: Iterable[Any] = self.connections
        idle = next((each for each in others if each is not self and each.idle), None)
        if idle is not None:
            self.connections.discard(idle)  # it is gone in the next turn of the loop
            idle.transport.close()
        return idle is not None

    def _expect(self, reading: _Reading) -> None:
        """Begin to read another part, and its time."""
        if reading is not _Reading.BODY:
            self._head_bytes = 0
        self._trailer_bytes = 0
        self._trailer_bytes = 0
        self._reading = reading
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        if reading is not _Reading.NOTHING:
            seconds = self._limits.header_s if reading is _Reading.HEAD else self._limits.transfer_s
            self._read_timer = self.loop.call_later(seconds, self._on_slow, seconds)

    def _on_slow(self, seconds: float) -> None:
        if self._behind_another:
            self._expect(self._reading)
            return
        if self._reading is _Reading.HEAD and self._head_bytes == 0:
            self.transport.close()  # it has asked for nothing
            return
        part = "headers" if self._reading is _Reading.HEAD else "body"
        self._refuse(408, "timeout", f"the {part} did not arrive within {seconds:g} s: send the request again")

    def _refuse(self, status: int, error_type: str, error: str) -> None:
        """Answer, unless an answer has begun, and close."""
        early = self._reading is _Reading.BODY and not self.cycle.response_started and not self._behind_another
        self._expect(_Reading.NOTHING)
        if self.transport.is_closing():
            return
        if early or not self._answering:
            body = to_json({"error": error, "error_type": error_type})
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
