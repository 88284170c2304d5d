"""The local cache of stores that are far away: verified blobs and the views made of them, bounded in size."""

import hashlib
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from model_store.errors import InvalidRequestError
from model_store.objects import keys
from model_store.storage.files import in_use
from model_store.storage.local import LocalStorage
from model_store.storage.s3 import endpoint

FOLDER_VARIABLE, SIZE_VARIABLE = "NASH_CACHE", "NASH_CACHE_BYTES"
DEFAULT_BYTES = 50 * 10**9

_IN_USE_SECONDS = 600.0  # a view that was opened this recently may be about to be loaded


def cache_folder(url: str) -> Path:
    """Where the blobs of a store are cached: in a folder of its own below `NASH_CACHE`, default `~/.cache/nash`."""
    base = os.environ.get(FOLDER_VARIABLE)
    root = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nash"
    return root / "stores" / hashlib.sha256(f"{endpoint()} {url.rstrip('/')}".encode()).hexdigest()[:16]


def most_bytes() -> int:
    """The size that a cache may have.

    Raises:
        InvalidRequestError: `NASH_CACHE_BYTES` is not a number.
    """
    text = os.environ.get(SIZE_VARIABLE) or str(DEFAULT_BYTES)
    if not text.isdecimal():
        raise InvalidRequestError(f"{SIZE_VARIABLE} is {text!r}: give a number of bytes")
    return int(text)


def touch(cache: LocalStorage, digest: str) -> None:
    """Note that a view was opened."""
    with suppress(FileNotFoundError):  # the first time, or another process has just cleared it
        os.utime(cache.path(f"{keys.VIEWS}/{digest}"))


def evict(cache: LocalStorage, limit_bytes: int) -> None:
    """Delete the views opened longest ago, and blobs that no view has, until the cache is small enough."""
    views = []
    for digest in cache.folders(keys.VIEWS):
        with suppress(FileNotFoundError):
            path = cache.path(f"{keys.VIEWS}/{digest}")
            views.append((path.stat().st_mtime, path))
    views.sort()
    while _drop_unlinked(cache) > limit_bytes and views:
        opened, oldest = views.pop(0)
        if opened > time.time() - _IN_USE_SECONDS:
            return
        if in_use(oldest):  # by a server, whose worker may be started again
            continue
        shutil.rmtree(oldest, ignore_errors=True)


def _drop_unlinked(cache: LocalStorage) -> int:
    """Delete blobs that are in no view; return the bytes of the others."""
    total = 0
    for prefix in cache.folders(keys.BLOBS):
        for path in cache.path(f"{keys.BLOBS}/{prefix}").iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if status.st_nlink == 1 and status.st_mtime < time.time() - _IN_USE_SECONDS:
                path.unlink(missing_ok=True)
            else:
                total += status.st_size
    return total
