"""What writing fails of when the disk is full, in words."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from nash.errors import DiskFullError, NashError


@contextmanager
def full_disk_named(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Turn the libraries' own errors into one line where less than `needed_bytes` are free below `folder`.

    Raises:
        DiskFullError: the disk is full. What was written before is kept.
        NashError: the disk has room, and still a file cannot be written.
    """
    try:
        yield
    except (RuntimeError, SafetensorError, OSError) as error:  # torch.save raises RuntimeError for a full disk
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes >= needed_bytes:
            if isinstance(error, SafetensorError) or "inline_container" in str(error):  # torch.save's file
                raise NashError(
                    f"{folder}: a file cannot be written ({' '.join(str(error).split())}): look for a quota or a limit "
                    "on the size of files, and call the same command again"
                ) from error
            raise
        raise DiskFullError(
            f"{folder}: the disk has {free_bytes / 1e6:.0f} MB free, and about {needed_bytes / 1e6:.0f} MB are "
            "needed: free some and call the same command again (training goes on from its last whole checkpoint)"
        ) from error
