"""Which folders are complete models, which can be completed, and where a model's folder is. Needs no torch."""

from dataclasses import replace
from pathlib import Path

from model_store.errors import InvalidRequestError
from model_store.find import FoundModel, find_model
from model_store.model.model import CONFIG, TOKENIZER, Model, read_object, tokenizer_files, weight_files
from model_store.store import Store
from nash.checkpoints.hub import names_a_hub_model, snapshot
from nash.errors import RequestError

_SETTINGS = "tokenizer_config.json"
_WITHOUT_FILES = ("ByT5Tokenizer",)  # classes whose vocabulary is no file
_VOCABULARIES = frozenset({"spiece.model", "sentencepiece.bpe.model", "source.spm", "vocab.json"})


def locate(path_or_ref: str, store: Store) -> FoundModel:
    """Find a model by its path, its REF in the store, or its name on the hub; it may be incomplete.

    Raises:
        RequestError: the hub's name is malformed or cannot be found, or the hub has no safetensors of the model.
        model_store.errors.ModelStoreError: there is no such model, or it is not supported.
    """
    if not names_a_hub_model(path_or_ref):
        return find_model(path_or_ref, store)
    folder, origin = snapshot(path_or_ref)
    try:
        weight_files(folder)
    except InvalidRequestError as error:
        raise RequestError(
            f"{path_or_ref} cannot be used: {error}; pickles (pytorch_model.bin) are never opened: load the model with "
            "transformers elsewhere and give the folder that its save_pretrained writes"
        ) from error
    return replace(find_model(str(folder), store), ref=path_or_ref, origin=origin)


def is_complete(found: FoundModel) -> bool:
    """Whether a model's folder can be served and published as it is."""
    if found.version is not None:
        return True
    return found.origin is None and (found.model.folder / TOKENIZER).is_file()


def can_be_completed(folder: Path) -> bool:
    """Whether a user's folder holds a model, but lacks the `tokenizer.json` that can be made of its other files."""
    return (folder / CONFIG).is_file() and not (folder / TOKENIZER).is_file()


def check_tokenizer(model: Model) -> None:
    """Check that a model has a `tokenizer.json`, or a tokenizer of which one can be made.

    Raises:
        InvalidRequestError: it has neither.
    """
    folder = model.folder
    names = {path.name for path in tokenizer_files(folder)}
    if TOKENIZER in names or names & _VOCABULARIES:
        return
    if _SETTINGS in names and read_object(folder, _SETTINGS).get("tokenizer_class") in _WITHOUT_FILES:
        return
    raise InvalidRequestError(
        f"{folder} has no {TOKENIZER}, and no SentencePiece model or vocab.json to make one of: "
        "save the tokenizer there with save_pretrained"
    )
