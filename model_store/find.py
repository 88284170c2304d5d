"""Find a model by what a user calls it: a folder, or the REF of a model in the store."""

from dataclasses import dataclass
from pathlib import Path

from model_store.errors import InvalidRequestError
from model_store.model.model import Model
from model_store.store import Store, StoredVersion
from model_store.version.ref import Ref, looks_like_path


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model and where it was found."""

    ref: str  # as requested
    model: Model
    version: StoredVersion | None  # None for a folder outside the store
    origin: str | None = None  # hub:OWNER/NAME@COMMIT for a model from the hub


def find_model(path_or_ref: str, store: Store) -> FoundModel:
    """Find and open a model; a model in the store is verified.

    Raises:
        InvalidRequestError: there is no such model, or its `config.json` cannot be read.
        UnsupportedModelError: its architecture is not supported.
        ModelStoreError: the store is damaged or cannot be read.
    """
    if looks_like_path(path_or_ref):
        folder = Path(path_or_ref)
        if not folder.is_dir():
            raise InvalidRequestError(
                f"{path_or_ref} is not a folder: give the folder of a model, "
                "or NAME, NAME@ALIAS, NAME:VERSION or NAME@sha256:DIGEST of one in the store"
            )
        return FoundModel(ref=path_or_ref, model=Model.open(folder), version=None)
    try:
        version = store.resolve(path_or_ref)
    except InvalidRequestError as error:
        if Path(path_or_ref).is_dir():
            raise type(error)(f"{error}; a folder of that name exists here: write ./{path_or_ref}") from error
        raise
    # An alias may move at any time: from here on, use the version.
    folder = store.checkout(Ref(name=version.name, version=version.version))
    return FoundModel(ref=path_or_ref, model=Model.open(folder), version=version)
