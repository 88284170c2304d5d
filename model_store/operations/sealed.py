"""Load exactly the bytes that were verified, whatever happens to the names of the files meanwhile."""

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from model_store.errors import CorruptStoreError
from model_store.objects.blobs import REPAIR
from model_store.storage.files import CHUNK_BYTES
from model_store.version.manifest import FileEntry


@contextmanager
def sealed(folder: Path, files: Sequence[FileEntry]) -> Iterator[Path]:
    """A folder whose files are those of `folder`, opened and verified; nobody can exchange them while it is open.

    It holds links to this process's descriptors, so a file that is replaced is not seen. A file that is written to is
    found out when the context ends: whatever was loaded until then must not be used.

    Raises:
        CorruptStoreError: a file is missing, or is not what the entry says.
    """
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nash-sealed-")))
        opened = []
        for file in files:
            descriptor = _open(folder / file.path)
            stack.callback(os.close, descriptor)
            looks = _verified(descriptor, folder / file.path, file)
            opened.append((descriptor, looks, file))
            (work / file.path).symlink_to(f"/proc/self/fd/{descriptor}")
        yield work
        for descriptor, looks, file in opened:
            if _looks(descriptor) != looks:  # written to, or renewed or linked by another publish
                _verified(descriptor, folder / file.path, file)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise CorruptStoreError(f"{path} cannot be read ({error.strerror}): {REPAIR}") from error


def _looks(descriptor: int) -> tuple[int, int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _verified(descriptor: int, path: Path, file: FileEntry) -> tuple[int, int, int]:
    """Read a whole file and compare; return how it looked before."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise CorruptStoreError(f"{path} is not a regular file: {REPAIR}")
    looks, digest, size = _looks(descriptor), hashlib.sha256(), 0
    while piece := os.pread(descriptor, CHUNK_BYTES, size):
        digest.update(piece)
        size += len(piece)
    if size != file.size:
        raise CorruptStoreError(f"{path} has {size} bytes instead of {file.size}: {REPAIR}")
    if digest.hexdigest() != file.sha256:
        raise CorruptStoreError(f"{path} has sha256 {digest.hexdigest()} instead of {file.sha256}: {REPAIR}")
    return looks
