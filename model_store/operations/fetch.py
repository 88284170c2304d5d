"""Bring blobs from where they are to where they are needed."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from model_store.errors import CorruptStoreError
from model_store.objects import keys
from model_store.objects.blobs import REPAIR, blob_key
from model_store.operations.place import Place
from model_store.storage.files import CHUNK_BYTES, make_folder
from model_store.storage.storage import Storage
from model_store.version.manifest import FileEntry

PARTIAL = ".part"

Progress = Callable[[int], None]  # hears of bytes as they come


def fetch_blob(place: Place, file: FileEntry) -> str:
    """Bring a blob of a store that is far away into the local cache, verified; return its key there.

    Raises:
        CorruptStoreError: it is missing, or what came is not what the manifest says.
    """
    key = keys.blob(file.sha256)
    with downloaded(place.storage, file, place.local.workplace) as path:
        place.local.put(key, path)
    return key


@contextmanager
def downloaded(
    storage: Storage, file: FileEntry, workplace: Path, progress: Progress = lambda _: None
) -> Iterator[Path]:
    """A verified copy of a blob in a workplace, deleted after use.

    A download that was interrupted goes on where it stopped. Of several processes that want one blob, each waits for
    the one before it.

    Raises:
        CorruptStoreError: the blob is missing, or what came is not what the manifest says.
    """
    make_folder(workplace)
    partial = workplace / f"{file.sha256}{PARTIAL}"
    while True:
        with _opened(partial) as target:
            fcntl.flock(target, fcntl.LOCK_EX)  # let go of when the file is closed, however this process ends
            if os.fstat(target.fileno()).st_nlink == 0:
                continue  # the one before is done with it
            digest, size = hashlib.sha256(), 0
            target.seek(0)
            while piece := target.read(CHUNK_BYTES):
                digest.update(piece)
                size += len(piece)
            begun = size > 0
            progress(size)
            try:
                for piece in storage.stream(blob_key(storage, file.sha256), size):
                    target.write(piece)
                    digest.update(piece)
                    size += len(piece)
                    progress(len(piece))
            except FileNotFoundError:
                raise _bad(storage, file, "is missing") from None
            target.flush()
            os.fsync(target.fileno())
            if size != file.size or digest.hexdigest() != file.sha256:
                partial.unlink()
                if begun:
                    continue  # what was left may have been spoilt here: once more from the start
                raise _bad(storage, file, "is not what its name says")
            os.utime(target.fileno())  # what is linked from here is new, however old the part was that it began with
            partial.chmod(0o444)
            yield partial
            partial.unlink()
            return


def _opened(partial: Path) -> BinaryIO:
    """A part, to be read and gone on with, also one that was left when it was whole already."""
    try:
        return partial.open("a+b")
    except PermissionError:
        partial.chmod(0o644)
        return partial.open("a+b")


def _bad(storage: Storage, file: FileEntry, what: str) -> CorruptStoreError:
    return CorruptStoreError(f"{storage.url}/{keys.blob(file.sha256)} ({file.path}) {what}: {REPAIR}")
