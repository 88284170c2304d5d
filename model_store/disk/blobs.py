"""The write-once files of a store, named by their sha256: model files and manifests."""

import hashlib
from pathlib import Path

from model_store.disk.files import damage, link_if_absent, make_folder, replace_by_link
from model_store.disk.paths import Paths
from model_store.errors import CorruptStoreError, UnknownSchemaError
from model_store.version.manifest import Manifest

REPAIR = "publish the same model directory again to repair it"


def store_blob(paths: Paths, fresh: Path, sha256: str, tmp: Path) -> None:
    """Store the file `fresh`, whose content has this sha256, durably as a blob.

    A blob that already exists is read and checked before anyone relies on it, and replaced if it is bad.
    """
    blob = paths.blob(sha256)
    make_folder(blob.parent)
    if not link_if_absent(fresh, blob) and damage(blob, sha256, fresh.stat().st_size) is not None:
        replace_by_link(fresh, blob, tmp)


def read_manifest(paths: Paths, digest: str) -> Manifest:
    """The manifest with this digest.

    Raises:
        CorruptStoreError: it is missing, or its bytes do not match the digest.
        UnknownSchemaError: it was written by a newer program.
    """
    path = paths.blob(digest)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CorruptStoreError(f"the manifest {path} is missing: {REPAIR}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise CorruptStoreError(f"the manifest {path} does not match the sha256 in its name: {REPAIR}")
    try:
        return Manifest.parse(data)
    except (CorruptStoreError, UnknownSchemaError) as error:
        raise type(error)(f"{path}: {error}") from None
