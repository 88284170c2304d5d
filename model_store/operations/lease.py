"""One collection at a time in a store: with two, one could delete what the other has just moved back.

In a folder it is a lock that the operating system drops with its process. On object storage it is an object under the
next number of `collections/`, renewed while the work goes on. It counts until it is deleted or has not been renewed for
an hour by the storage's own clock; one whose process was on this machine and is no more counts no longer.
"""

import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from model_store.errors import StoreAccessError
from model_store.objects import keys
from model_store.objects.numbered import newest, numbered
from model_store.operations.place import Place
from model_store.storage.files import make_folder
from model_store.storage.storage import Entry, Storage

LEASE_SECONDS = 3600.0
_TRIES = 8  # of numbers that others, who will see the lease and give up, may have taken
_LOCK = ".collection.lock"  # in the store's folder

_held: set[str] = set()  # the leases of this process

Hold = Callable[[], None]  # to be called before each deletion: raises if the store is not this process's any more


@contextmanager
def alone(place: Place) -> Iterator[Hold]:
    """The right to delete, for as long as the context lasts.

    Raises:
        StoreAccessError: another collection is at work.
    """
    if place.remote:
        lease = _Lease(place.storage)
        try:
            yield lease.hold
        finally:
            lease.end()
        return
    with _locked(place.local.root):
        yield lambda: None


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    make_folder(root)
    with (root / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreAccessError(f"another collection is at work in {root}: let it finish") from None
        yield


class _Lease:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._owner = _this_process() | {"lease": uuid.uuid4().hex}
        # Before, so that one that begins now is not disturbed; and after, in the storage's own time.
        self._check(numbered(storage, keys.COLLECTIONS), time.time())
        self._number = newest(storage, keys.COLLECTIONS) + 1
        if not self._create(self._number):
            raise self._refused()
        try:
            others = numbered(storage, keys.COLLECTIONS)
            if (own := others.pop(self._number, None)) is None:
                raise self._refused()
            self._check(others, own.modified)
        except BaseException:
            self.end()
            raise
        for number in others:
            storage.delete(keys.collection(number))

    def hold(self) -> None:
        """Renew the lease if it is time to.

        Raises:
            StoreAccessError: it ran out, or another process has taken it.
        """
        age = _now() - self._since
        if age > LEASE_SECONDS / 2:
            raise StoreAccessError(f"{self._storage.url}: the collection was held up for too long: begin it again")
        if age > LEASE_SECONDS / 10:
            before = self._number
            if self._storage.stat(keys.collection(before)) is None:
                raise self._refused()
            for number in range(before + 1, before + _TRIES):
                if self._create(number):
                    self._number = number
                    self._storage.delete(keys.collection(before))
                    return
            raise self._refused()

    def end(self) -> None:
        """Give it up. If that fails, it counts as long as this process lives, but no more than an hour."""
        _held.discard(self._owner["lease"])
        with suppress(StoreAccessError):
            self._storage.delete(keys.collection(self._number))

    def _create(self, number: int) -> bool:
        since = _now()
        data = json.dumps(self._owner, sort_keys=True).encode("ascii")
        _held.add(self._owner["lease"])
        created = self._storage.create(keys.collection(number), data)
        if created:
            self._since = since
        return created

    def _check(self, others: Mapping[int, Entry], now: float) -> None:
        for number, entry in others.items():
            if entry.modified > now - LEASE_SECONDS and not _is_over(self._storage.read(keys.collection(number))):
                raise self._refused(number)

    def _refused(self, number: int | None = None) -> StoreAccessError:
        remedy = "let it finish"
        if number is not None:
            remedy += f", or delete the object {keys.collection(number)} if it was killed on another machine"
        return StoreAccessError(f"another collection is at work in {self._storage.url}: {remedy}")


def _now() -> float:
    """Seconds, those that the machine slept included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _this_process() -> dict[str, Any]:
    """What tells a process from all others, wherever they run: containers may share a host's name and numbers."""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "namespace": _link("/proc/self/ns/pid"),
    }


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""


def _is_over(data: bytes | None) -> bool:
    """Whether the process of a lease was on this machine and is no more; also if the lease has just gone."""
    if data is None:
        return True
    try:
        owner = json.loads(data)
        process, here = owner["process"], _this_process()
        same_place = all(owner.get(key) == here[key] for key in ("host", "boot", "namespace"))
        if not same_place or not here["boot"] or type(process) is not int or process < 1:
            return False
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, PermissionError):
        return False
    return process == os.getpid() and owner.get("lease") not in _held  # of an earlier process with this one's number
