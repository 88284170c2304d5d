"""Clear messages for write errors on a full disk."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from nash.errors import DiskFullError, NashError

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What torch.save says about a file that cannot be written: a plain RuntimeError, like all of torch's errors.
_OF_TORCH_SAVE = ("inline_container", "PytorchStreamWriter", "unexpected pos", "iostream error")


@contextmanager
def full_disk_named(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Turn the libraries' errors about files that cannot be written into one line; other errors pass unchanged.

    Raises:
        DiskFullError: less than `needed_bytes` are free at `folder`. Earlier files are kept.
        NashError: the disk has room, but a file still cannot be written.
    """
    try:
        yield
    except (RuntimeError, SafetensorError, OSError) as error:
        if not _of_writing(error):
            raise
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes >= needed_bytes:
            raise NashError(
                f"{folder}: a file cannot be written ({' '.join(str(error).split())}): look for a quota or a "
                "limit on file sizes, and run the same command again"
            ) from error
        raise DiskFullError(
            f"{folder}: the disk has {free_bytes / 1e6:.0f} MB free, but about {needed_bytes / 1e6:.0f} MB are "
            "needed: free some and run the same command again (training resumes from its last whole checkpoint)"
        ) from error


def _of_writing(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    if isinstance(error, SafetensorError):
        return "deserializ" not in str(error)  # that error is about a file that cannot be read
    return any(words in str(error) for words in _OF_TORCH_SAVE)
