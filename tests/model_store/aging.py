"""Time that goes by in a store's folder."""

import os
import time
from pathlib import Path

from model_store.objects.blobs import GRACE_SECONDS


def age(root: Path, seconds: float = GRACE_SECONDS + 3600) -> None:
    """Make everything below a folder older, without following links."""
    then = time.time() - seconds
    for path in (root, *root.rglob("*")):
        try:
            os.utime(path, (then, then), follow_symlinks=False)
        except FileNotFoundError:  # another process has just taken it
            continue
