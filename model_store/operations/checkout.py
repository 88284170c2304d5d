"""Model directories made of hard links to blobs: a loader opens the very files that were verified."""

import errno
from collections.abc import Container, Sequence
from pathlib import Path

from model_store.errors import CorruptStoreError, InvalidRequestError, StoreAccessError
from model_store.model.model import is_weights
from model_store.model.safetensors_header import read_header
from model_store.objects import keys
from model_store.objects.blobs import REPAIR, blob_damage, blob_key, damage
from model_store.operations.fetch import fetch_blob
from model_store.operations.place import Place
from model_store.version.manifest import FileEntry, Manifest

_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def open_view(place: Place, manifest: Manifest, digest: str, ref: str, *, trusted: Container[str] = ()) -> Path:
    """The directory of a version, complete and with every file verified in this call.

    Several processes may do this at once: only missing or bad files are put in place, each in one step. An intact view
    is only read, so the store may be on a read-only disk; publishing creates the view for that reason. `trusted` are
    the sha256 of blobs that this process has just read or written: they are linked without being read again.

    Raises:
        CorruptStoreError: a blob is damaged, or the directory contains a foreign file.
        StoreAccessError: files are missing or bad, and this process cannot write to the store.
    """
    local, folder = place.local, f"{keys.VIEWS}/{digest}"
    view = local.path(folder)
    bad = [each for each in manifest.files if damage(local, f"{folder}/{each.path}", each.sha256, each.size)]
    if bad:
        try:
            _link(place, bad, folder, ref, trusted)
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


def _link(place: Place, files: Sequence[FileEntry], folder: str, ref: str, trusted: Container[str]) -> None:
    """Link verified blobs into a view, replacing whatever is there."""
    local = place.local
    for file in files:
        for last in (False, False, True):
            if file.sha256 in trusted:
                key, what = blob_key(local, file.sha256), None
            else:
                key, what = blob_damage(local, file.sha256, file.size)
            if what is not None and place.remote:
                key, what = fetch_blob(place, file), None
            if what is not None:
                raise CorruptStoreError(f"{ref}: {file.path} {what} ({local.path(key)}): {REPAIR}")
            try:
                local.put(f"{folder}/{file.path}", local.path(key))
                break
            except FileNotFoundError:  # a collection has just moved it
                if last:
                    raise
