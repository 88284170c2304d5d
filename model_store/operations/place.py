"""Where a store keeps its objects, and where this machine has the files of what it loads."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from model_store.errors import InvalidRequestError
from model_store.operations.cache import cache_folder
from model_store.storage.files import private_folder
from model_store.storage.local import LocalStorage
from model_store.storage.s3 import SCHEME, S3Storage
from model_store.storage.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Place:
    """A storage, and the local folder of its views: for a store on a local disk its own, else a cache of blobs."""

    storage: Storage
    local: LocalStorage

    @classmethod
    def of(cls, store: str | Path) -> Self:
        """The place of a store: a path, or s3://BUCKET/PREFIX.

        Raises:
            InvalidRequestError: the URL is malformed or of another scheme, or its library is not installed.
        """
        text = str(store)
        if text.startswith(SCHEME):
            cache = cache_folder(text)
            return cls(storage=S3Storage(text, cache), local=LocalStorage(cache))
        if "://" in text or text.startswith("s3:"):
            raise InvalidRequestError(f"{text!r} is no place for a store: give a folder, or s3://BUCKET/PREFIX")
        if Path(store).is_file():
            raise InvalidRequestError(f"{store} is a file: give the folder of a store, or s3://BUCKET/PREFIX")
        local = LocalStorage(Path(store))
        return cls(storage=local, local=local)

    @property
    def remote(self) -> bool:
        """Whether blobs have to be fetched before they can be loaded."""
        return self.storage is not self.local

    @contextmanager
    def private_folder(self) -> Iterator[Path]:
        """A new folder among the work in progress, deleted afterwards."""
        with private_folder(self.storage.workplace) as folder:
            yield folder
