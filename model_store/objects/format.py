"""That a place is a store, and of which format: `store.json`, written once before anything else."""

import json

from model_store.errors import CorruptStoreError, InvalidRequestError, UnknownSchemaError
from model_store.objects import keys
from model_store.storage.storage import Storage

FORMAT = "nash-model-store"
FORMAT_VERSION = 1


def prepare(storage: Storage) -> None:
    """Make a place a store unless it is one, before something is written to it.

    Raises:
        InvalidRequestError: it holds something else.
        UnknownSchemaError: a newer program made it.
    """
    check(storage)
    document = {"format": FORMAT, "format_version": FORMAT_VERSION}
    storage.create(keys.FORMAT, json.dumps(document, sort_keys=True).encode("ascii"))


def check(storage: Storage) -> None:
    """Refuse a place that holds something else than a store; one that holds nothing is an empty store.

    Raises:
        InvalidRequestError: it does.
        UnknownSchemaError: a newer program made it.
        CorruptStoreError: its `store.json` cannot be read.
    """
    data = storage.read(keys.FORMAT)
    if data is None:
        _check_unmarked(storage)
        return
    try:
        fields = json.loads(data)
        name, version = fields["format"], fields["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptStoreError(
            f"{storage.url}/{keys.FORMAT} cannot be read: if this is a store, delete that file"
        ) from None
    if name != FORMAT:
        raise InvalidRequestError(
            f"{storage.url} holds a {str(name)[:80]!r}, not a model store: choose another --store"
        )
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise UnknownSchemaError(
            f"{storage.url} has store format {str(version)[:20]}, this program reads {FORMAT_VERSION}: "
            "update the program"
        )


def _check_unmarked(storage: Storage) -> None:
    """Stores made before `store.json` have `models/`; a publish that was killed early left only `tmp/` or blobs."""
    folders = set(storage.folders(""))
    if folders & {"models", "blobs"}:
        return
    files = [entry.name for entry in storage.entries("")]
    if keys.FORMAT in files:  # another process has just made this a store
        return
    foreign = sorted(name for name in {*files, *folders} - {"tmp"} if not name.startswith("."))
    if foreign:
        raise InvalidRequestError(
            f"{storage.url} is not a model store (it holds {foreign[0]!r}): "
            "give --store an empty place, or one where a store is"
        )
