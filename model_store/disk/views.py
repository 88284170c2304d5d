"""Model directories made of hard links to blobs: a loader opens the very files that were verified."""

import errno
from collections.abc import Sequence
from pathlib import Path

from model_store.disk.blobs import REPAIR
from model_store.disk.files import damage, link_if_absent, make_folder, private_folder, replace_by_link
from model_store.disk.paths import Paths
from model_store.errors import CorruptStoreError, InvalidRequestError, StoreAccessError
from model_store.model.model import is_weights
from model_store.model.safetensors_header import read_header
from model_store.version.manifest import FileEntry, Manifest

_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def open_view(paths: Paths, manifest: Manifest, digest: str, ref: str) -> Path:
    """The directory of a version, complete and with every file verified in this call.

    Several processes may do this at once: only missing or bad files are put in place, each in one step. An intact view
    is only read, so the store may be on a read-only disk; publishing creates the view for that reason.

    Raises:
        CorruptStoreError: a blob is damaged, or the directory contains a foreign file.
        StoreAccessError: files are missing or bad, and this process cannot write to the store.
    """
    view = paths.view(digest)
    bad = [f for f in manifest.files if damage(view / f.path, f.sha256, f.size) is not None]
    if bad:
        try:
            _put(paths, bad, view, ref)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            raise StoreAccessError(
                f"{ref}: {view / bad[0].path} is missing or bad, and this process cannot write the store "
                f"({error.strerror}): publish the model again, or load it once, as a user who can"
            ) from error
    foreign = sorted({path.name for path in view.iterdir()} - {file.path for file in manifest.files})
    if foreign:
        raise CorruptStoreError(f"{ref}: {view / foreign[0]} is not part of the version: delete {view}")
    try:
        for file in manifest.files:
            if is_weights(file.path):
                read_header(view / file.path)
    except InvalidRequestError as error:
        raise CorruptStoreError(f"{ref}: {error}: {REPAIR}") from None
    return view


def _put(paths: Paths, files: Sequence[FileEntry], view: Path, ref: str) -> None:
    """Link verified blobs into a view, replacing whatever is there."""
    make_folder(view)
    with private_folder(paths.tmp) as tmp:
        for file in files:
            blob = paths.blob(file.sha256)
            if (what := damage(blob, file.sha256, file.size)) is not None:
                raise CorruptStoreError(f"{ref}: {file.path} {what} ({blob}): {REPAIR}")
            if not link_if_absent(blob, view / file.path):
                replace_by_link(blob, view / file.path, tmp)
