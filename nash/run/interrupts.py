"""Ctrl-C and SIGTERM, while work that must not be torn is under way."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Within the `with` block both signals raise KeyboardInterrupt, but not within `held`: there they wait for its end.

    A second signal does not wait. Only a process's main thread receives signals; in another one nothing changes.
    """

    def __init__(self) -> None:
        self._held = False
        self._waiting = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._receive) for each in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for each, handler in self._before.items():
            signal.signal(each, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Work that is done to its end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._waiting:
            self._waiting = False
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._held and not self._waiting:
            self._waiting = True
            return
        self._waiting = False
        raise KeyboardInterrupt
