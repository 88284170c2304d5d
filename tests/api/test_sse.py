import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.types import Message

from server.api.http.json_response import to_json
from server.api.http.sse import EventStreamResponse, made_ahead
from server.errors import GenerationError


class Connection:
    """One HTTP exchange as an ASGI server sees it."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def answer(self, events: AsyncIterator[dict[str, Any]]) -> str:
        response = EventStreamResponse(events, keep_alive_s=0.02)
        await response({"type": "http"}, self.receive, self.send)
        return b"".join(message.get("body", b"") for message in self.sent).decode()


async def broken_after(silence_s: float, *events: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Some events, some silence, an error."""
    for event in events:
        yield event
    await asyncio.sleep(silence_s)
    raise GenerationError("broke")


def test_events_and_comments() -> None:
    async def scenario() -> None:
        async def events() -> AsyncIterator[dict[str, Any]]:
            yield {"a": "\u2028"}
            await asyncio.sleep(0.1)
            yield {"b": 2}

        connection = Connection()
        text = await connection.answer(events())
        assert text.startswith('data:{"a":"\\u2028"}\n\n: keep-alive\n\n')
        assert text.endswith('data:{"b":2}\n\n')
        assert connection.sent[0]["status"] == 200
        assert connection.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}

    asyncio.run(scenario())


def test_a_long_silence_before_the_first_event_is_filled_too() -> None:
    async def scenario() -> None:
        text = await Connection().answer(broken_after(0.1))
        assert text.startswith(": keep-alive\n\n")
        assert json.loads(text.rsplit("data:", 1)[1]) == {"error": "broke", "error_type": "generation"}

    asyncio.run(scenario())


def test_events_made_ahead_wait_for_no_reader() -> None:
    async def scenario() -> None:
        made, ended = [], asyncio.Event()

        async def events() -> AsyncIterator[dict[str, Any]]:
            try:
                for i in range(3):
                    made.append(i)
                    yield {"i": i}
                if broken:
                    raise GenerationError("broke")
                await asyncio.sleep(waits_s)
            finally:
                ended.set()

        broken, waits_s = False, 0.0
        ahead = made_ahead(events())
        assert made == []
        assert await anext(ahead) == {"i": 0}
        await asyncio.wait_for(ended.wait(), 5)
        assert [event async for event in ahead] == [{"i": 1}, {"i": 2}]

        broken, ahead = True, made_ahead(events())
        assert [(await anext(ahead))["i"] for _ in range(3)] == [0, 1, 2]
        with pytest.raises(GenerationError, match="broke"):
            await anext(ahead)

        broken, waits_s = False, 60.0
        ended.clear()
        ahead = made_ahead(events())
        await anext(ahead)
        await ahead.aclose()
        assert ended.is_set()

    asyncio.run(scenario())


def test_an_error_before_the_first_event_is_raised() -> None:
    async def scenario() -> None:
        connection = Connection()
        with pytest.raises(GenerationError, match="broke"):
            await connection.answer(broken_after(0.0))
        assert connection.sent == []

    asyncio.run(scenario())


def test_an_error_after_it_is_the_last_event() -> None:
    async def scenario() -> None:
        text = await Connection().answer(broken_after(0.0, {"a": 1}))
        assert text == 'data:{"a":1}\n\ndata:{"error":"broke","error_type":"generation"}\n\n'

    asyncio.run(scenario())


def test_the_events_are_closed_when_the_client_goes_away() -> None:
    async def scenario() -> None:
        connection, closed = Connection(), False

        async def events() -> AsyncIterator[dict[str, Any]]:
            nonlocal closed
            try:
                yield {"a": 1}
                connection.gone.set()
                await asyncio.sleep(60)
            finally:
                closed = True

        assert await connection.answer(events()) == 'data:{"a":1}\n\n'
        assert closed

    asyncio.run(scenario())


def test_json_on_the_wire_is_ascii_and_has_no_nan() -> None:
    assert to_json({"text": "é\u2028漢"}) == b'{"text":"\\u00e9\\u2028\\u6f22"}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(float("nan"))
