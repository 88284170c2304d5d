"""Remove a version: it gets a tombstone, and a later collection takes what only it needed."""

from contextlib import suppress
from dataclasses import dataclass

from model_store.errors import CorruptStoreError, InvalidRequestError, UnknownSchemaError
from model_store.objects import keys
from model_store.objects.aliases import named_versions
from model_store.objects.blobs import read_manifest
from model_store.objects.versions import bury, read_version
from model_store.storage.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A version that can be removed, or was."""

    name: str
    version: int
    digest: str | None  # None if its pointer cannot be read
    size: int | None  # bytes of its weights; None if its manifest cannot be read

    @property
    def ref(self) -> str:
        return f"{self.name}:{self.version}"


def removable(storage: Storage, name: str, version: int) -> Removal:
    """What is known of a live version that is to be removed.

    Raises:
        InvalidRequestError: an alias names it.
        CorruptStoreError: an alias cannot be read, so it might name it.
    """
    check_unnamed(storage, name, version)
    digest = size = None
    with suppress(CorruptStoreError, UnknownSchemaError):
        digest = read_version(storage, name, version)
        size = read_manifest(storage, digest).spec.bytes
    return Removal(name=name, version=version, digest=digest, size=size)


def remove(storage: Storage, name: str, version: int, reason: str) -> None:
    """Remove one version. Its number never comes back.

    Raises:
        InvalidRequestError: an alias names it.
        CorruptStoreError: an alias cannot be read, so it might name it.
    """
    check_unnamed(storage, name, version)
    bury(storage, name, version, reason)
    try:
        check_unnamed(storage, name, version)
    except InvalidRequestError:
        # An alias was moved to it at the same time. The mover may have seen it alive, so it stays.
        storage.delete(keys.tombstone(name, version))
        raise


def check_unnamed(storage: Storage, name: str, version: int) -> None:
    """Refuse a version that an alias names.

    Raises:
        InvalidRequestError: one does.
        CorruptStoreError: an alias cannot be read, so it might.
    """
    by = [alias for alias, number in named_versions(storage, name).items() if number == version]
    if by:
        raise InvalidRequestError(
            f"{name}@{by[0]} names {name}:{version}: `nash models tag {name}:VERSION {by[0]}` or "
            f"`nash models untag {name} {by[0]}` first"
        )
