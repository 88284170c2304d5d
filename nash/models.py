"""Loading and saving Hugging Face model directories."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging

import nash.modeling_nash  # noqa: F401 - registers the classes that load_compact finds
from model_store.errors import UnsupportedModelError
from model_store.families import family_of
from model_store.ref import looks_like_path
from model_store.spec import ModelSpec
from model_store.store import Store, StoredVersion
from nash.data import file_digest
from nash.disk import full_disk_named
from nash.errors import RequestError
from nash.recipe import DataRecipe, T5Shape

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def quiet_libraries() -> None:
    """Keep transformers' bars and notices off the terminal: the commands show their own progress."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


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
    version = store.resolve(path_or_ref)
    return ResolvedModel(ref=path_or_ref, folder=store.checkout(version.ref), version=version)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory.

    Raises:
        RequestError: there is none that can be loaded without a network.
    """
    if not (folder / "tokenizer.json").is_file():
        raise RequestError(f"{folder} has no tokenizer.json: save the tokenizer there with save_pretrained")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise RequestError(
            f"the tokenizer in {folder} cannot be loaded ({_named(error)}): save it again with save_pretrained"
        ) from error
    return tokenizer


def _named(error: Exception) -> str:
    """An error of a library's in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


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


def load_dense(folder: Path) -> PreTrainedModel:
    """A dense model in float32, ready to be trained.

    Raises:
        RequestError: the directory holds no dense model of a supported family.
    """
    spec = read_spec(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if family_of(config["model_type"])[1]:
        raise RequestError(f"{folder} holds a model that is already pruned: give the dense one it came from")
    model = _load(folder)
    if model.config.decoder_start_token_id is None:  # training must begin targets as serving will
        model.config.decoder_start_token_id = spec.decoder_start_id
    if model.config.pad_token_id is None:
        model.config.pad_token_id = spec.pad_id
    return model


def load_compact(folder: Path) -> PreTrainedModel:
    """A compact model in float32, ready to be trained."""
    return _load(folder)


def _load(folder: Path) -> PreTrainedModel:
    try:
        model: PreTrainedModel = AutoModelForSeq2SeqLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except (RuntimeError, MemoryError):  # there is not enough memory
        raise
    except Exception as error:
        raise RequestError(
            f"transformers cannot load the model in {folder} ({_named(error)}): save it again with save_pretrained"
        ) from error
    return model


def new_t5(shape: T5Shape, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> T5ForConditionalGeneration:
    """A T5 with random weights (from torch's global generator) for the tokenizer's vocabulary.

    Raises:
        RequestError: the tokenizer does not say which token pads, or which one ends a text.
    """
    for name in ("pad_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise RequestError(f"the tokenizer has no {name}: name it in its tokenizer_config.json")
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=shape.d_model,
        num_heads=shape.num_heads,
        d_kv=shape.d_kv,
        d_ff=shape.d_ff,
        num_layers=shape.encoder_layers,
        num_decoder_layers=shape.decoder_layers,
        feed_forward_proj=shape.feed_forward_proj,
        dropout_rate=shape.dropout,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    model = T5ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=max_new_tokens,
    )
    return model


def save_model(model: Any, tokenizer_files: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write a model directory whole or not at all: weights in `dtype`, and the tokenizer's files as they are."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(dtype)
    with full_disk_named(folder.parent, sum(parameter.nbytes for parameter in model.parameters())):
        model.save_pretrained(partial)
        for file in tokenizer_paths(tokenizer_files):
            shutil.copyfile(file, partial / file.name)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


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
