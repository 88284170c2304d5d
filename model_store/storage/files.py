"""File system operations: durable folders, write-once files, create-if-absent, copies that are hashed on the way."""

import fcntl
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_store.errors import InvalidRequestError

CHUNK_BYTES = 1 << 20
_READ_ONLY = 0o444


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents, making each name durable in its parent folder."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def free_bytes(folder: Path) -> int:
    """Bytes that an unprivileged writer can still write to the file system of `folder`."""
    return shutil.disk_usage(folder).free


@contextmanager
def private_folder(tmp: Path) -> Iterator[Path]:
    """A new folder below `tmp`, deleted afterwards whatever happened inside."""
    make_folder(tmp)
    folder = tmp / uuid.uuid4().hex
    folder.mkdir()
    with held(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Say that a folder is in use, to every process on this machine, until the context or this process ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def in_use(path: Path) -> bool:
    """Whether a process of this machine holds a folder; a file is never held."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def write_new(path: Path, data: bytes) -> None:
    """Write a new read-only file and sync it to disk.

    Raises:
        FileExistsError: `path` is taken.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _READ_ONLY)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_new(source: Path, target: Path) -> tuple[str, int]:
    """Copy a regular file to a new read-only one and sync it to disk; return the sha256 (hex) and size copied.

    Raises:
        InvalidRequestError: `source` is a symbolic link or not a regular file.
        FileExistsError: `target` is taken.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer.
        reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if source.is_symlink():
            raise InvalidRequestError(f"{source} is a symbolic link: put the file itself there") from error
        raise
    with os.fdopen(reader, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InvalidRequestError(f"{source} is not a regular file: remove it")
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _READ_ONLY)
        with os.fdopen(descriptor, "wb", buffering=0) as copy:
            sha256, size = hashlib.sha256(), 0
            while chunk := file.read(CHUNK_BYTES):
                sha256.update(chunk)
                size += len(chunk)
                _write_all(copy.fileno(), chunk)
            os.fsync(copy.fileno())
    return sha256.hexdigest(), size


def _write_all(descriptor: int, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[os.write(descriptor, left) :]


def link_if_absent(source: Path, target: Path) -> bool:
    """Link `source` durably to `target` unless that name is taken; return whether it did."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        return False
    sync_folder(target.parent)
    return True
