"""A store in a folder of a local disk: an object is a file, its key the path below the folder.

A file is written whole under a private name in `tmp/` and then linked to its public one: `os.link` fails if the name is
taken, and nobody ever sees a part of a file.
"""

import errno
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from model_store.errors import CorruptStoreError, StoreAccessError
from model_store.storage.files import CHUNK_BYTES, link_if_absent, make_folder, sync_folder, write_new
from model_store.storage.storage import LARGEST_POINTER_BYTES, Content, Entry

_SMALL_BYTES = 1 << 14  # read at once; most objects have fewer
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK)


class LocalStorage:
    """Implements `Storage`. The folder need not exist until something is written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    @property
    def workplace(self) -> Path:
        """`tmp/`, on the same file system as everything else, so that a link is enough."""
        return self.root / "tmp"

    def path(self, key: str) -> Path:
        """Where an object lies."""
        return self.root / key

    def create(self, key: str, data: bytes) -> bool:
        """Create a small object unless the key is taken; return whether it did."""
        target = self.path(key)
        make_folder(target.parent)
        make_folder(self.workplace)
        private = self.workplace / uuid.uuid4().hex
        try:
            write_new(private, data)
            return self._link_if_absent(private, target)
        finally:
            private.unlink(missing_ok=True)

    def read(self, key: str, most_bytes: int = LARGEST_POINTER_BYTES) -> bytes | None:
        """The bytes of an object, or None if there is none."""
        try:
            # Not through pathlib: a listing of ten thousand versions reads twenty thousand files.
            descriptor = os.open(f"{self.root}/{key}", os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            data = os.read(descriptor, _SMALL_BYTES)
            if len(data) < _SMALL_BYTES:
                return data  # whole: a regular file is short only at its end, and objects never change
            size = os.fstat(descriptor).st_size
            if size <= most_bytes:
                return data + os.read(descriptor, size - len(data))
        except IsADirectoryError:
            raise CorruptStoreError(f"{self.path(key)} is a folder, not an object: move it away") from None
        finally:
            os.close(descriptor)
        raise CorruptStoreError(f"{self.path(key)} has more than {most_bytes} bytes: it is not what its name says")

    def read_all(self, keys: Sequence[str], most_bytes: int = LARGEST_POINTER_BYTES) -> list[Content]:
        """`read` for many keys."""
        return [self._content(key, most_bytes) for key in keys]

    def _content(self, key: str, most_bytes: int) -> Content:
        try:
            return self.read(key, most_bytes)
        except CorruptStoreError as error:
            return error

    def stat(self, key: str) -> Entry | None:
        """One object's entry, or None if there is none."""
        path = self.path(key)
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Entry(name=path.name, size=found.st_size, modified=found.st_mtime)

    def entries(self, folder: str) -> list[Entry]:
        """The objects directly below a folder, by name; none if it does not exist."""
        try:
            with os.scandir(self.path(folder)) as scan:
                found = [each for each in scan if not each.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        files = []
        for each in found:
            try:
                files.append((each.name, each.stat(follow_symlinks=False)))
            except FileNotFoundError:  # it has just gone; the others are there
                continue
        files.sort(key=lambda pair: pair[0])
        return [Entry(name=name, size=status.st_size, modified=status.st_mtime) for name, status in files]

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly below a folder, sorted."""
        try:
            with os.scandir(self.path(folder)) as found:
                return sorted(each.name for each in found if each.is_dir())  # also one that was moved and linked to
        except (FileNotFoundError, NotADirectoryError):
            return []

    def stream(self, key: str, offset: int = 0) -> Iterator[bytes]:
        """The bytes of an object from an offset on, in pieces."""
        path = self.path(key)
        # O_NONBLOCK: opening a pipe must not wait for a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file", str(path))
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def put(self, key: str, file: Path) -> None:
        """Link a file of the workplace to the key, replacing what it had."""
        target = self.path(key)
        make_folder(target.parent)
        if not self._link_if_absent(file, target):
            make_folder(self.workplace)
            stand_in = self.workplace / uuid.uuid4().hex
            os.link(file, stand_in, follow_symlinks=False)
            stand_in.replace(target)
            stand_in.unlink(missing_ok=True)  # rename leaves it if both were already the same file
            sync_folder(target.parent)

    def renew(self, key: str) -> bool:
        """Give an object the present time; false if it is gone, or another user's."""
        try:
            os.utime(self.path(key))
        except (FileNotFoundError, PermissionError):
            return False
        return True

    def move(self, key: str, new_key: str) -> bool:
        """Rename an object; it keeps its time."""
        source, target = self.path(key), self.path(new_key)
        make_folder(target.parent)
        try:
            source.replace(target)
        except FileNotFoundError:
            return False
        sync_folder(target.parent)
        sync_folder(source.parent)
        return True

    def delete(self, key: str) -> bool:
        """Delete an object; return whether there was one."""
        try:
            self.path(key).unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        sync_folder(self.path(key).parent)
        return True

    def _link_if_absent(self, source: Path, target: Path) -> bool:
        try:
            return link_if_absent(source, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise StoreAccessError(
                f"{self.root}: its file system has no hard links ({error.strerror}), which a store needs: "
                "put the store on another one"
            ) from error
