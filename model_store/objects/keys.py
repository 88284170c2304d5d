"""The keys of a store's objects. Pure: nothing here touches a storage.

store.json                                  that this is a store, and the version of its format
blobs/sha256/ab/<hex>                       write-once bytes: model files and manifests
quarantine/<hex>                            blobs that no version needs, before they are deleted
collections/000001                          on object storage: a collection is at work
models/<name>/versions/000007               names a manifest digest: the commit point
models/<name>/aliases/<alias>/000012        {version, reason, at}; the highest generation counts
models/<name>/tombstones/000003             version 3 was removed
models/<name>/measurements/<digest>/<id>    write-once records of measurements of a version

On a local disk also:

tmp/<uuid>                                  work in progress, garbage after a crash
views/<manifest digest>/                    model directories of hard links to blobs

Callers must check names, aliases and digests first.
"""

import re

FORMAT = "store.json"
MODELS = "models"
BLOBS = "blobs/sha256"
QUARANTINE = "quarantine"
VIEWS = "views"
COLLECTIONS = "collections"

LAST_NUMBER = 10**12 - 1

_NUMBER = re.compile(r"(?!0{6})[0-9]{6}|[1-9][0-9]{6,11}")  # from 1, with six digits at least


def number_name(number: int) -> str:
    """The last part of the key of a version or of an alias generation: 7 is `000007`."""
    return f"{number:06d}"


def parse_number(name: str) -> int | None:
    """The inverse of `number_name`; None for an object that is not a numbered pointer."""
    return int(name) if _NUMBER.fullmatch(name) else None


def blob(sha256: str) -> str:
    """The key of a blob."""
    return f"{BLOBS}/{sha256[:2]}/{sha256}"


def quarantined(sha256: str) -> str:
    """The key of a blob that no version needed when it was moved there."""
    return f"{QUARANTINE}/{sha256}"


def collection(number: int) -> str:
    """The key of the object that says that a collection is at work."""
    return f"{COLLECTIONS}/{number_name(number)}"


def versions(name: str) -> str:
    """The folder of a model's versions."""
    return f"{MODELS}/{name}/versions"


def version(name: str, number: int) -> str:
    """The key of one version's pointer."""
    return f"{versions(name)}/{number_name(number)}"


def aliases(name: str) -> str:
    """The folder of a model's aliases, each a folder of generations."""
    return f"{MODELS}/{name}/aliases"


def alias(name: str, alias: str) -> str:
    """The folder of an alias's generations."""
    return f"{aliases(name)}/{alias}"


def generation(name: str, alias: str, number: int) -> str:
    """The key of one move of an alias."""
    return f"{aliases(name)}/{alias}/{number_name(number)}"


def tombstones(name: str) -> str:
    """The folder of the tombstones of a model's versions."""
    return f"{MODELS}/{name}/tombstones"


def tombstone(name: str, number: int) -> str:
    """The key of one version's tombstone."""
    return f"{tombstones(name)}/{number_name(number)}"


def measurements(name: str, digest: str) -> str:
    """The folder of the records of a version with this manifest digest."""
    return f"{MODELS}/{name}/measurements/{digest}"
