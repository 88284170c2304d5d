"""Model directories, in the store or outside of it, as far as their files tell. Needs no torch."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from model_store.errors import InvalidRequestError, NotFoundError, UnsupportedModelError
from model_store.ref import looks_like_path
from model_store.spec import ModelSpec
from model_store.store import Store, StoredVersion
from nash.errors import RequestError
from nash.recipe import DataRecipe
from nash.rows import file_digest


def read_spec(folder: Path) -> ModelSpec:
    """The shape of the model in a directory.

    Raises:
        RequestError: there is no model, or its family is not supported.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("config.json holds no JSON object")
        return ModelSpec.from_config(config)
    except FileNotFoundError as error:
        raise RequestError(f"{folder} is not a model directory: it has no config.json") from error
    except (ValueError, RecursionError, UnsupportedModelError) as error:
        raise RequestError(f"{folder}: {error}") from error


def check_lengths(spec: ModelSpec, data: DataRecipe) -> None:
    """Refuse length limits beyond the positions that a model has: training would fail at the first longer text.

    Raises:
        RequestError: a limit is too high.
    """
    limits = {"max_source_tokens": data.max_source_tokens, "max_target_tokens": data.max_target_tokens}
    for key, limit in limits.items():
        if spec.max_positions is not None and limit > spec.max_positions:
            raise RequestError(
                f"data.{key} {limit} is more than the model's {spec.max_positions} positions: "
                f"set it to {spec.max_positions} or less"
            )


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model that was given by a path or a reference: what to call it, and its files."""

    ref: str
    folder: Path
    version: StoredVersion | None  # None for a path


def resolve_model(path_or_ref: str, store: Store) -> ResolvedModel:
    """Find a model; one in the store is verified.

    Raises:
        RequestError: the path is no folder.
    """
    if looks_like_path(path_or_ref):
        folder = Path(path_or_ref)
        if not folder.is_dir():
            raise RequestError(f"{path_or_ref} is not a folder: give a model directory, or a REF such as g2p@dense")
        return ResolvedModel(ref=path_or_ref, folder=folder, version=None)
    try:
        version = store.resolve(path_or_ref)
    except (NotFoundError, InvalidRequestError) as error:
        if Path(path_or_ref).is_dir():
            raise RequestError(f"{error}; a folder of that name is here: write ./{path_or_ref}") from error
        raise
    return ResolvedModel(ref=path_or_ref, folder=store.checkout(version.ref), version=version)


def model_digest(folder: Path) -> str:
    """The sha256 of what makes a directory's model: weights, settings and tokenizer.

    Raises:
        RequestError: there are no weights.
    """
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise RequestError(f"{folder} has no model.safetensors: save the weights there as one safetensors file")
    settings = [folder / name for name in ("config.json", "generation_config.json") if (folder / name).is_file()]
    return files_digest([weights, *settings, *tokenizer_paths(folder)])


def files_digest(files: Iterable[Path]) -> str:
    """One sha256 of several files' names and contents."""
    digests = [[file.name, file_digest(file)] for file in files]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def tokenizer_paths(folder: Path) -> Iterable[Path]:
    """The tokenizer's files in a model directory."""
    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "spiece.model",  # T5, mT5, Pegasus
        "sentencepiece.bpe.model",  # mBART, M2M100
        "vocab.json",  # BART, Marian, M2M100
        "merges.txt",  # BART
        "source.spm",  # Marian
        "target.spm",
        "target_vocab.json",
    )
    return [folder / name for name in names if (folder / name).is_file()]
