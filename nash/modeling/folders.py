"""Loading and saving Hugging Face model directories."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

import nash.modeling.compact  # noqa: F401 - registers the classes that load_compact finds
from model_store.model.model import Model, tokenizer_files
from nash.errors import RequestError
from nash.run.disk import full_disk_named

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and notices off the terminal: the commands show their own progress."""
    # Or every worker of a data loader says that its tokenizer, which it does not use, has become serial.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory.

    Raises:
        RequestError: none can be loaded without a network.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise RequestError(
            f"the tokenizer in {folder} cannot be loaded ({_named(error)}): save it again with save_pretrained"
        ) from error
    if getattr(tokenizer, "tgt_lang", "") is None:
        tokenizer.tgt_lang = tokenizer.src_lang  # the other classes do this themselves; M2M100's fails without it
    return tokenizer


def _named(error: Exception) -> str:
    """A library's error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def load_dense(source: Model) -> PreTrainedModel:
    """A dense model in float32, ready to be trained.

    Raises:
        RequestError: it is pruned already, or transformers cannot load it.
    """
    if source.pruned:
        raise RequestError(f"{source.folder} holds a model that is already pruned: give the dense one it came from")
    model, spec = _load(source.folder), source.spec
    if model.config.decoder_start_token_id is None:  # training must start targets as serving does
        model.config.decoder_start_token_id = spec.decoder_start_id
    if model.config.pad_token_id is None:
        model.config.pad_token_id = spec.pad_id
    return model


def load_compact(source: Model) -> PreTrainedModel:
    """A compact model in float32, ready to be trained."""
    return _load(source.folder)


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


def save_model(model: Any, tokenizer: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write a model directory, whole or not at all: weights in `dtype`, and the tokenizer's files unchanged."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(dtype)
    with full_disk_named(folder.parent, sum(parameter.nbytes for parameter in model.parameters())):
        model.save_pretrained(partial)
        for file in tokenizer_files(tokenizer):
            shutil.copyfile(file, partial / file.name)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
