"""A TCP relay on the loopback that can be cut: connections end in the middle of what they carry."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Relay:
    """Passes bytes to a server until a number of them have come back or gone there; then it is cut, and stays so."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._target = (parts.hostname, parts.port)
        self._lock = threading.Lock()
        self._left: int | None = None  # bytes until the cut; None: no cut
        self._open: set[socket.socket] = set()
        self.passed = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self._end_all()

    def cut_after(self, count: int) -> None:
        """Pass so many more bytes, in both directions together."""
        with self._lock:
            self._left = count

    def mend(self) -> None:
        """Pass everything again."""
        with self._lock:
            self._left = None

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._left == 0:
                client.close()
                continue
            server = socket.create_connection(self._target)
            with self._lock:
                self._open |= {client, server}
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 14):
                with self._lock:
                    allowed = len(data) if self._left is None else min(len(data), self._left)
                    self._left = None if self._left is None else self._left - allowed
                    cut = self._left == 0
                    self.passed += allowed
                target.sendall(data[:allowed])
                if cut:
                    self._end_all()
                    return
            target.shutdown(socket.SHUT_WR)

    def _end_all(self) -> None:
        with self._lock:
            ended, self._open = self._open, set()
        for each in ended:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
