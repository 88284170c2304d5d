"""A store in S3-compatible object storage, through obstore (`pip install nash[s3]`).

Versions and aliases rest on one thing that not every such storage has: `If-None-Match: *`, which lets exactly one of
several writers create a key. `check_exclusion` finds out before the first write.

Uploads that were cut off are not visible as objects; a lifecycle rule of the bucket should delete them after some days.
"""

import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import update_wrapper
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from model_store.errors import CorruptStoreError, InvalidRequestError, StoreAccessError
from model_store.storage.files import CHUNK_BYTES, make_folder, private_folder
from model_store.storage.storage import LARGEST_POINTER_BYTES, Content, Entry

SCHEME = "s3://"
RETRY_VARIABLE = "NASH_S3_RETRY_S"
PROBED = "probed"  # a file in the cache: this storage excludes

_URL = re.compile(r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]*)(?P<prefix>(/[^?#\[\]]*)?)")
_RETRY_S = 60.0
_READERS = 32  # small objects read at once
_RANGE_BYTES = 16 << 20  # of a download, each a request with a time limit of its own
_LARGEST_COPY_BYTES = 5 << 30  # of one request to copy within the storage
_PART_BYTES = 16 << 20  # of an upload; S3 allows 10,000 parts, so objects of 160 GB

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _retry_s() -> float:
    """How long a request is tried again before the work fails."""
    text = os.environ.get(RETRY_VARIABLE) or str(_RETRY_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise InvalidRequestError(f"{RETRY_VARIABLE} is {text!r}: give a number of seconds")
    return seconds


def endpoint() -> str:
    """Where the storage is, by the usual variables; empty for Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _naming_errors(method: Callable[Concatenate["S3Storage", _P], _T]) -> Callable[Concatenate["S3Storage", _P], _T]:
    """Turn an error of the storage into one line that names the place and, where it is known, the remedy."""

    def wrapper(self: "S3Storage", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(self, *args, **kwargs)
        except self.errors.BaseError as error:
            raise self.named(error) from error

    return update_wrapper(wrapper, method)


class S3Storage:
    """Implements `Storage`."""

    def __init__(self, url: str, cache: Path) -> None:
        """`url` is s3://BUCKET or s3://BUCKET/PREFIX; credentials come from the usual AWS_ variables.

        Raises:
            InvalidRequestError: the URL is malformed, or obstore is not installed.
        """
        try:
            import obstore
            from obstore.exceptions import BaseError
            from obstore.store import S3Store
        except ImportError:
            raise InvalidRequestError(f"{url} needs obstore: pip install 'nash[s3]'") from None
        match = _URL.fullmatch(url)
        if match is None:
            raise InvalidRequestError(f"{url!r} is not the URL of a store: write s3://BUCKET or s3://BUCKET/PREFIX")
        bucket, prefix = match["bucket"], "/".join(filter(None, match["prefix"].split("/")))
        self.url = f"{SCHEME}{bucket}/{prefix}".rstrip("/")
        self._cache = cache
        self._obstore: Any = obstore
        self.errors: Any = obstore.exceptions
        found = endpoint()
        try:
            self._store = S3Store(
                bucket,
                prefix=prefix or None,
                config={"endpoint": found} if found else None,
                client_options={"allow_http": found.startswith("http://"), "connect_timeout": "5s", "timeout": "120s"},
                retry_config={"max_retries": 10, "retry_timeout": timedelta(seconds=_retry_s())},
            )
        except BaseError as error:
            raise self.named(error) from error

    @property
    def workplace(self) -> Path:
        """`tmp/` of the local cache."""
        return self._cache / "tmp"

    def create(self, key: str, data: bytes) -> bool:
        """Create a small object unless the key is taken; return whether it did."""
        self.check_exclusion()
        return self._create(key, data)

    def check_exclusion(self) -> None:
        """Find out, once for a cache, whether one of several writers alone can create a key.

        Raises:
            StoreAccessError: two could.
        """
        known = self._cache / PROBED
        if known.exists():
            return
        key, won = f"tmp/probe-{uuid.uuid4().hex}", []
        barrier = threading.Barrier(2)

        def write(data: bytes) -> None:
            barrier.wait()
            if self._create(key, data):
                won.append(data)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(write, (b"one", b"two")))
        again = self._create(key, b"three")
        stored = self.read(key)
        self.delete(key)
        if len(won) != 1 or again or stored != won[0]:
            raise StoreAccessError(
                f"{self.url}: its conditional put (If-None-Match) does not exclude, so two publishers could get one "
                "number: use storage that supports it"
            )
        make_folder(self._cache)
        known.touch()

    @_naming_errors
    def _create(self, key: str, data: bytes) -> bool:
        try:
            self._obstore.put(self._store, key, data, mode="create", use_multipart=False)
        except (self.errors.AlreadyExistsError, self.errors.PreconditionError):
            return self.read(key) == data  # a request whose answer was lost is sent again, and finds its own object
        return True

    @_naming_errors
    def read(self, key: str, most_bytes: int = LARGEST_POINTER_BYTES) -> bytes | None:
        """The bytes of an object, or None if there is none."""
        try:
            found = self._obstore.get(self._store, key)
            if found.meta["size"] > most_bytes:
                raise CorruptStoreError(
                    f"{self.url}/{key} has more than {most_bytes} bytes: it is not what it should be"
                )
            return bytes(found.bytes())
        except (FileNotFoundError, self.errors.NotFoundError):
            return None

    def read_all(self, keys: Sequence[str], most_bytes: int = LARGEST_POINTER_BYTES) -> list[Content]:
        """`read` for many keys at once."""
        if len(keys) < 2:
            return [self._content(key, most_bytes) for key in keys]
        with ThreadPoolExecutor(min(_READERS, len(keys))) as pool:
            return list(pool.map(lambda key: self._content(key, most_bytes), keys))

    def _content(self, key: str, most_bytes: int) -> Content:
        try:
            return self.read(key, most_bytes)
        except CorruptStoreError as error:
            return error

    @_naming_errors
    def stat(self, key: str) -> Entry | None:
        """One object's entry, or None if there is none."""
        try:
            return _entry(self._obstore.head(self._store, key))
        except (FileNotFoundError, self.errors.NotFoundError):
            return None

    @_naming_errors
    def entries(self, folder: str) -> list[Entry]:
        """The objects directly below a folder, by name."""
        found = self._obstore.list_with_delimiter(self._store, prefix=folder or None)
        below = f"{folder}/" if folder else ""  # some storage lists the folder itself as an empty object
        objects = [each for each in found["objects"] if each["path"].startswith(below)]
        return sorted((_entry(each) for each in objects), key=lambda entry: entry.name)

    @_naming_errors
    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly below a folder, sorted."""
        found = self._obstore.list_with_delimiter(self._store, prefix=folder or None)
        return sorted(each.rstrip("/").rpartition("/")[2] for each in found["common_prefixes"])

    def stream(self, key: str, offset: int = 0) -> Iterator[bytes]:
        """The bytes of an object from an offset on, in pieces."""
        known = self.stat(key)
        if known is None:
            raise FileNotFoundError(f"{self.url}/{key} is not there")
        while offset < known.size:
            length = min(_RANGE_BYTES, known.size - offset)
            try:
                data = bytes(self._obstore.get_range(self._store, key, start=offset, length=length))
            except self.errors.BaseError as error:
                raise self.named(error) from error
            for start in range(0, len(data), CHUNK_BYTES):
                yield data[start : start + CHUNK_BYTES]
            offset += len(data)

    @_naming_errors
    def put(self, key: str, file: Path) -> None:
        """Upload a file, replacing what the key had."""
        self._obstore.put(self._store, key, file, chunk_size=_PART_BYTES, max_concurrency=4)

    def renew(self, key: str) -> bool:
        """Never: an object gets another time only by being put again."""
        return False

    @_naming_errors
    def move(self, key: str, new_key: str) -> bool:
        """Copy an object, then delete the original; the copy's time is the present."""
        known = self.stat(key)
        if known is None:
            return False
        try:
            if known.size <= _LARGEST_COPY_BYTES:
                self._obstore.copy(self._store, key, new_key)
            else:
                self._copy_by_way_of_here(key, new_key)
        except (FileNotFoundError, self.errors.NotFoundError):
            return False
        self.delete(key)
        return True

    def _copy_by_way_of_here(self, key: str, new_key: str) -> None:
        with private_folder(self.workplace) as folder:
            local = folder / "object"
            with local.open("wb") as file:
                file.writelines(self.stream(key))
            self.put(new_key, local)

    @_naming_errors
    def delete(self, key: str) -> bool:
        """Delete an object; return whether there was one."""
        there = self.stat(key) is not None
        self._obstore.delete(self._store, key)
        return there

    def named(self, error: Exception) -> StoreAccessError:
        """One line for an error of the storage."""
        first = " ".join(str(error).split())[:300]
        if "NoSuchBucket" in str(error):
            return StoreAccessError(f"{self.url}: there is no such bucket: create it, or check the name and the region")
        if isinstance(error, (self.errors.PermissionDeniedError, self.errors.UnauthenticatedError)):
            return StoreAccessError(
                f"{self.url}: access denied ({first}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's "
                "policy"
            )
        return StoreAccessError(f"{self.url}: {first}: check the bucket, AWS_ENDPOINT_URL, AWS_REGION and the network")


def _entry(meta: Any) -> Entry:
    return Entry(name=meta["path"].rpartition("/")[2], size=meta["size"], modified=meta["last_modified"].timestamp())
