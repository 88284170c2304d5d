"""Sends requests at given times, whether or not earlier ones were answered, with as little work as that takes."""

import asyncio
import gc
import time
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How one request ended."""

    status: int
    seconds: float  # from the moment at which it was to be sent
    retry_after_s: int = 0


async def send_at(port: int, arrivals: list[tuple[float, bytes]]) -> tuple[list[Answer], list[float]]:
    """POST each body to `/generate` of a local server at its time, in seconds from now, ascending.

    Returns the answers, and by how many seconds each was sent late: a run in which that is much measures the client.
    """
    idle: list[_Connection] = []
    tasks: list[asyncio.Task[Answer]] = []
    lags_s: list[float] = []
    gc.disable()  # its pauses would be the server's
    begun_s = time.perf_counter()
    try:
        for at_s, body in arrivals:
            wait_s = begun_s + at_s - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            lags_s.append(max(0.0, time.perf_counter() - begun_s - at_s))
            tasks.append(asyncio.create_task(_send(port, body, begun_s + at_s, idle)))
        answers = await asyncio.gather(*tasks)
    finally:
        gc.enable()
        for connection in idle:
            connection.writer.close()
    return answers, lags_s


async def send_all(port: int, bodies: Iterable[bytes], *, in_flight: int) -> list[Answer]:
    """POST each body to `/generate` of a local server, so many at a time; answers come in the order of their ends."""
    left = iter(bodies)
    idle: list[_Connection] = []
    answers: list[Answer] = []

    async def one_after_the_other() -> None:
        for body in left:
            answers.append(await _send(port, body, time.perf_counter(), idle))

    try:
        await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))
    finally:
        for connection in idle:
            connection.writer.close()
    return answers


@dataclass(frozen=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def _send(port: int, body: bytes, due_s: float, idle: list[_Connection]) -> Answer:
    head = f"POST /generate HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-length: {len(body)}\r\n\r\n"
    while True:
        kept = bool(idle)
        connection = idle.pop() if kept else _Connection(*await asyncio.open_connection("127.0.0.1", port))
        try:
            connection.writer.write(head.encode("ascii") + body)
            lines = (await connection.reader.readuntil(b"\r\n\r\n")).decode("ascii").split("\r\n")
            break
        except (asyncio.IncompleteReadError, ConnectionError):
            if not kept:  # a server may close a connection while nothing is asked of it
                raise
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    await connection.reader.readexactly(int(headers["content-length"]))
    idle.append(connection)
    return Answer(
        status=int(lines[0].split()[1]),
        seconds=time.perf_counter() - due_s,
        retry_after_s=int(headers.get("retry-after", 0)),
    )
