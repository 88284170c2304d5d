"""The write-once bytes of a store, named by their sha256: model files and manifests."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from model_store.errors import CorruptStoreError, UnknownSchemaError
from model_store.objects import keys
from model_store.storage.storage import Content, Storage, whole
from model_store.version.manifest import Manifest

MISSING = "is missing"
REPAIR = "publish the same model directory again to repair it"
LARGEST_MANIFEST_BYTES = 1 << 24

# Blobs that no version needs are collected at this age. A publisher relies on a blob that is there already only while
# it is younger than half of that, so what it relies on cannot be collected before it has committed.
GRACE_SECONDS = 24 * 3600.0


Bring = Callable[[str], AbstractContextManager[Path]]  # a file of the workplace by its sha256, valid in the context


def store_blob(storage: Storage, bring: Bring, sha256: str, size_bytes: int, now: float) -> bool:
    """Store the file that `bring` has, whose content has this sha256, durably as a blob; return whether it was needed.

    A blob that is there already is relied upon only after it was read and checked, and only if it is young (`now` is
    in seconds since the epoch) or can be made so; else it is replaced.
    """
    key = keys.blob(sha256)
    known = storage.stat(key)
    intact = known is not None and damage(storage, key, sha256, size_bytes) is None
    if known is not None and intact and (known.modified > now - GRACE_SECONDS / 2 or storage.renew(key)):
        return False
    with bring(sha256) as fresh:
        storage.put(key, fresh)
    return True


def blob_places(sha256: str) -> tuple[str, str, str]:
    """Where a blob may be: in its place, or in quarantine while a collection has not seen yet that a version needs it.

    Its place comes twice, for it may be moved back between the first two looks.
    """
    return keys.blob(sha256), keys.quarantined(sha256), keys.blob(sha256)


def blob_key(storage: Storage, sha256: str) -> str:
    """The key that a blob has now; its own if there is none."""
    return next((key for key in blob_places(sha256) if storage.stat(key) is not None), keys.blob(sha256))


def blob_damage(storage: Storage, sha256: str, size_bytes: int) -> tuple[str, str | None]:
    """The key of a blob, and what is wrong with it; `damage` wherever it is."""
    for key in blob_places(sha256):
        if (what := damage(storage, key, sha256, size_bytes)) != MISSING:
            return key, what
    return keys.blob(sha256), MISSING


def damage(storage: Storage, key: str, sha256: str, size_bytes: int) -> str | None:
    """What is wrong with a stored object, in a few words; None if it is exactly as expected."""
    known = storage.stat(key)
    if known is None:
        return MISSING
    if known.size != size_bytes:
        return f"has {known.size} bytes instead of {size_bytes}"
    digest = hashlib.sha256()
    try:
        for piece in storage.stream(key):
            digest.update(piece)
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if digest.hexdigest() == sha256 else f"has sha256 {digest.hexdigest()} instead of {sha256}"


def read_manifest(storage: Storage, digest: str) -> Manifest:
    """The manifest with this digest.

    Raises:
        CorruptStoreError: it is missing, or its bytes do not match the digest.
        UnknownSchemaError: it was written by a newer program.
    """
    data = None
    for key in blob_places(digest):
        if (data := storage.read(key, LARGEST_MANIFEST_BYTES)) is not None:
            break
    manifest = parse_manifest(storage, digest, data)
    if manifest.canonical_bytes() != data:
        raise CorruptStoreError(f"the manifest {storage.url}/{keys.blob(digest)} is not in canonical form: {REPAIR}")
    return manifest


def parse_manifest(storage: Storage, digest: str, data: Content) -> Manifest:
    """The manifest in a blob's bytes, whatever its form; None stands for a blob that is missing.

    Raises:
        CorruptStoreError: it is missing, or its bytes do not match the digest.
        UnknownSchemaError: it was written by a newer program.
    """
    where = f"{storage.url}/{keys.blob(digest)}"
    if data is None:
        raise CorruptStoreError(f"the manifest {where} is missing: {REPAIR}")
    data = whole(data)
    if hashlib.sha256(data).hexdigest() != digest:
        raise CorruptStoreError(f"the manifest {where} does not match the sha256 in its name: {REPAIR}")
    try:
        return Manifest.parse(data)
    except (CorruptStoreError, UnknownSchemaError) as error:
        raise type(error)(f"{where}: {error}") from None
