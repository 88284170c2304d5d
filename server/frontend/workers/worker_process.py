"""The API process's side of one worker: its process, its socket, its frames."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence

from server.messages import Command, FrameBuffer, ProtocolError, Report, decode_report, encode

_EXIT_S = 0.5  # how long a worker may take to notice that its socket is closed

OnReport = Callable[[Report], None]


class _ReportProtocol(asyncio.Protocol):
    """Passes each report to a callback in the same call that read it, with no task or wait in between."""

    def __init__(self, on_report: OnReport) -> None:
        self._on_report = on_report
        self._frames = FrameBuffer()
        self._transport: asyncio.BaseTransport | None = None
        self.closed = asyncio.get_running_loop().create_future()
        self.failure: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._frames.feed(data):
                self._on_report(decode_report(payload))
        except ProtocolError as error:
            self.failure = str(error)
            assert self._transport is not None
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


class WorkerProcess:
    """One life of one worker, from `spawn` to `wait`."""

    def __init__(
        self, process: asyncio.subprocess.Process, transport: asyncio.Transport, protocol: _ReportProtocol
    ) -> None:
        self._process = process
        self._transport = transport
        self._protocol = protocol

    @classmethod
    async def spawn(cls, module: str, environment: Mapping[str, str], on_report: OnReport) -> "WorkerProcess":
        """Start `python -m module FD PARENT_PID` with our environment plus `environment`."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    module,
                    str(theirs.fileno()),
                    str(os.getpid()),
                    stdin=asyncio.subprocess.DEVNULL,
                    env={**os.environ, **environment},
                    pass_fds=(theirs.fileno(),),
                )
            except BaseException:
                ours.close()
                raise
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(lambda: _ReportProtocol(on_report), sock=ours)
        return cls(process, transport, protocol)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, commands: Sequence[Command]) -> None:
        """Queue commands. If the worker is gone they are dropped; `wait` reports its end."""
        if not self._transport.is_closing():
            self._transport.write(encode(commands))

    def kill(self) -> None:
        """End the worker by force; `wait` reports it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> str:
        """Wait until the worker is gone; return how it ended."""
        await self._protocol.closed
        # All its reports have been read by now. A process that lives on without its socket is useless.
        code = await self._reap()
        if self._protocol.failure is not None:
            return f"sent a message that cannot be read ({self._protocol.failure})"
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    async def stop(self) -> None:
        """End the worker: by closing its socket, then by force."""
        self._transport.close()
        await self._reap()

    async def _reap(self) -> int:
        try:
            async with asyncio.timeout(_EXIT_S):
                return await self._process.wait()
        except TimeoutError:
            if self._process.returncode is None:
                self._process.kill()
            return await self._process.wait()
