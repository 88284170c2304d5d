"""What a store needs of the place where its bytes lie. Everything else is the same wherever that is.

An object is a sequence of bytes with a key: names joined by `/`. It appears whole or not at all, and it is durable when
the call that made it returns.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from model_store.errors import CorruptStoreError

LARGEST_POINTER_BYTES = 1 << 16  # of the small objects that name others; none of ours has over 4 KiB


class Entry(NamedTuple):  # not a dataclass: a listing makes ten thousand
    """One object, as a listing shows it."""

    name: str  # the last part of its key
    size: int  # bytes
    modified: float  # when it was made, in seconds since the epoch by the storage's clock


Content = bytes | CorruptStoreError | None  # of an object, why it cannot be read, or that there is none


def whole(content: Content) -> bytes:
    """What was read, or nothing where there is none.

    Raises:
        CorruptStoreError: it could not be read.
    """
    if isinstance(content, CorruptStoreError):
        raise content
    return content or b""


class Storage(Protocol):
    """Objects by key. Every method may raise `OSError` or `StoreAccessError`."""

    url: str  # what users call it: a path, or s3://BUCKET/PREFIX

    @property
    def workplace(self) -> Path:
        """A local folder for work in progress, from which `put` takes files; it need not exist yet."""

    def create(self, key: str, data: bytes) -> bool:
        """Create a small object unless the key is taken; return whether it did.

        Of several writers one wins; those that bring equal bytes may all be told that they did.
        """

    def read(self, key: str, most_bytes: int = LARGEST_POINTER_BYTES) -> bytes | None:
        """The bytes of an object, or None if there is none.

        Raises:
            CorruptStoreError: it is larger than `most_bytes`, or no object but a folder.
        """

    def read_all(self, keys: Sequence[str], most_bytes: int = LARGEST_POINTER_BYTES) -> list[Content]:
        """`read` for many keys, at once where the storage is far away; an error of one key stands in its place."""

    def stat(self, key: str) -> Entry | None:
        """One object's entry, or None if there is none."""

    def entries(self, folder: str) -> list[Entry]:
        """The objects directly below a folder, by name; none if it does not exist."""

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly below a folder, sorted."""

    def stream(self, key: str, offset: int = 0) -> Iterator[bytes]:
        """The bytes of an object from an offset on, in pieces.

        Raises:
            FileNotFoundError: there is none.
        """

    def put(self, key: str, file: Path) -> None:
        """Store a file of the workplace, replacing what the key had. Two writers of a key must bring equal bytes."""

    def renew(self, key: str) -> bool:
        """Give an object the present time; false if it is gone, or cannot be given another without `put`."""

    def move(self, key: str, new_key: str) -> bool:
        """Move an object to a free key, or to one with equal bytes; return whether there was one to move."""

    def delete(self, key: str) -> bool:
        """Delete an object; return whether there was one."""
