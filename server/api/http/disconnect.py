"""Notice that a client has disconnected."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive

from server.errors import ClientGoneError

T = TypeVar("T")


async def client_gone(receive: Receive) -> None:
    """Return when the client closes its connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client disconnects.

    Raises:
        ClientGoneError: the client disconnected.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(client_gone(request.receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError("the client closed its connection")
    finally:
        task.cancel()
        watcher.cancel()
