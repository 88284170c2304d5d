"""What clients that do wrong cost the others: `/health` and small callers, alone and beside them.

A bare server in a process of its own is probed at the same time: what it takes is the machine's part.
"""

import asyncio
import contextlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from benchmarks.conduct.exchange import counted
from benchmarks.loopback import children_of, figures, memory_bytes, random_text, serving
from benchmarks.shapes import NAMED

PAUSE_S = 0.25  # between two waves
BYTE_S = 2.0  # between two bytes of a slow client
SMALL_CALLERS = 2
_CHUNK = b"a" * 1_000_000
_ENDED = (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)

Act = Callable[[int, Counter[str]], Awaitable[None]]


def measure(model: str, store: str, *, phase_s: float, connections: int, header_bytes: int) -> dict[str, Any]:
    """The figures of each phase."""
    acts: dict[str, tuple[Act | None, int]] = {
        "alone": (None, 0),
        "one_1mb_text": (_text, 1),
        "twelve_1mb_texts": (_text, 12),
        "one_large_header": (_header_of(header_bytes), 1),
        "half_open": (_half_open, connections),
        "slowloris": (_slow, connections),
        "alone_again": (None, 0),
    }
    result: dict[str, Any] = {
        "phase_s": phase_s,
        "connections": connections,
        "header_bytes": header_bytes,
        "small_callers": SMALL_CALLERS,
        "phases": {},
    }
    with _bare_server() as bare, serving([model], "--store", store) as (port, process):
        asyncio.run(_phase((port, bare), None, 0, min(3.0, phase_s)))  # warms up
        before = counted(port)
        for name, (act, clients) in acts.items():
            result["phases"][name] = phase = asyncio.run(_phase((port, bare), act, clients, phase_s))
            phase["api_rss_mb"] = round(memory_bytes(process.pid, "VmRSS") / 1e6, 1)
            print(name, json.dumps(phase), flush=True)
        result["generations_counted"] = counted(port) - before
        result["workers_at_the_end"] = len(children_of(process.pid))
    return result


@contextlib.contextmanager
def _bare_server() -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks.conduct.bare_server"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(timeout=30)


async def _phase(ports: tuple[int, int], act: Act | None, clients: int, phase_s: float) -> dict[str, Any]:
    """Probe the server and the bare one while so many clients act on the server."""
    port, bare = ports
    seen: Counter[str] = Counter()
    acting = [asyncio.create_task(_again(act, port, seen)) for _ in range(clients) if act is not None]
    await asyncio.sleep(0.5 if acting else 0)
    body = json.dumps({"inputs": random_text(NAMED["g2p"], random.Random(0))})
    health, machine, *small = await asyncio.gather(
        _probe(port, phase_s, "GET", "/health"),
        _probe(bare, phase_s, "GET", "/health"),
        *(_probe(port, phase_s, "POST", "/generate", body) for _ in range(SMALL_CALLERS)),
    )
    for task in acting:
        task.cancel()
    for ended in await asyncio.gather(*acting, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended
    return {
        "health": _told(health["times_ms"], health["failures"]),
        "bare_server": _told(machine["times_ms"], machine["failures"]),
        "small": _told([each for one in small for each in one["times_ms"]], _sum(one["failures"] for one in small)),
        "clients_saw": dict(sorted(seen.items())),
    }


def _sum(counts: Any) -> dict[str, int]:
    return dict(sum((Counter(each) for each in counts), Counter()))


def _told(times_ms: list[float], failures: dict[str, int]) -> dict[str, Any]:
    return figures(times_ms) | {"max_ms": round(max(times_ms), 2), "failures": failures}


async def _probe(port: int, phase_s: float, *what: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.conduct.prober", str(port), str(phase_s), *what]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    found: dict[str, Any] = json.loads(output)
    return found


async def _again(act: Act, port: int, seen: Counter[str]) -> None:
    while True:
        try:
            await act(port, seen)
        except _ENDED as error:
            seen[type(error).__name__] += 1
        await asyncio.sleep(PAUSE_S)


async def _text(port: int, seen: Counter[str]) -> None:
    """A text of a megabyte, about the longest that fits into a body: to be refused, or by turns to be cut."""
    parameters = {"truncate": 64} if sum(seen.values()) % 2 else {}
    body = json.dumps({"inputs": ("w3 " * 350_000)[:1_000_000], "parameters": parameters}).encode()
    head = f"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head + body)
        seen[(await reader.readline()).split()[1].decode()] += 1
    finally:
        writer.close()


def _header_of(size: int) -> Act:
    async def act(port: int, seen: Counter[str]) -> None:
        """A header that has no end before so many bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx-long: ")
            for _ in range(max(1, size // len(_CHUNK))):
                writer.write(_CHUNK)
                await writer.drain()
            writer.write(b"\r\n\r\n")
            seen[(await reader.readline()).split()[1].decode()] += 1
        finally:
            writer.close()

    return act


async def _half_open(port: int, seen: Counter[str]) -> None:
    """Connect and say nothing until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seen["connected"] += 1
    try:
        await reader.read()
        seen["closed by the server"] += 1
    finally:
        writer.close()


async def _slow(port: int, seen: Counter[str]) -> None:
    """Send a byte of a header every few seconds until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seen["connected"] += 1
    answer = asyncio.create_task(reader.readline())
    try:
        writer.write(b"GET /health HTTP/1.1\r\nx-slow: ")
        while not answer.done():
            writer.write(b"a")
            await asyncio.wait([answer], timeout=BYTE_S)
        line = answer.result().split()
        seen[line[1].decode() if line else "closed by the server"] += 1
    finally:
        answer.cancel()
        with contextlib.suppress(asyncio.CancelledError, *_ENDED):
            await answer
        writer.close()
