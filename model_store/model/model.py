"""A model folder, opened once: what is in it and which shape that has."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from model_store.errors import InvalidRequestError, UnsupportedModelError
from model_store.model.config import layout_of, spec_of
from model_store.model.families import family_of
from model_store.model.layout import Layout
from model_store.model.safetensors_header import TensorInfo, read_header
from model_store.model.spec import ModelSpec

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
GENERATION = "generation_config.json"
INT4 = "int4.safetensors"  # `int4.py` says what is in it

_TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",  # T5, mT5, UMT5, Pegasus
    "sentencepiece.bpe.model",  # mBART, M2M100
    "vocab.json",  # BART, Marian, M2M100
    "merges.txt",  # BART
    "source.spm",  # Marian
    "target.spm",
    "target_vocab.json",
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model folder whose `config.json` was read. Its other files are looked at when they are asked for."""

    folder: Path
    config: Mapping[str, Any]  # config.json, parsed
    spec: ModelSpec

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the shape of the model in a folder.

        Raises:
            InvalidRequestError: it holds no model.
            UnsupportedModelError: it holds one of another architecture.
        """
        config = read_object(folder, CONFIG)
        try:
            return cls(folder=folder, config=config, spec=spec_of(config))
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{folder}: {error}") from error

    @property
    def layout(self) -> Layout:
        """What its configuration, tensors and sublayers are called."""
        return layout_of(self.spec)

    @property
    def pruned(self) -> bool:
        """Whether it has the form that `nash prune` writes."""
        return family_of(self.config["model_type"])[1]

    @property
    def weights(self) -> Path:
        """Its weights, as one safetensors file."""
        return self.folder / WEIGHTS

    @property
    def calibrated(self) -> bool:
        """Whether it holds weights that were calibrated to four bits."""
        return (self.folder / INT4).is_file()

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The header of its weights, by name.

        Raises:
            InvalidRequestError: there are none, or their file is torn.
        """
        self.require(WEIGHTS)
        return read_header(self.weights)

    def check_weights(self) -> None:
        """Compare the header of its weights with its shape.

        Raises:
            InvalidRequestError: there are none, their file is torn, or its tensors are not those of the shape.
        """
        wanted = dict(self.layout.shapes())
        allowed = wanted | dict(self.layout.optional_shapes())
        for name in wanted:
            if name not in self.tensors:
                raise InvalidRequestError(f"{self.weights} has no tensor {name!r}, which {CONFIG} calls for")
        for name, info in self.tensors.items():
            if name not in allowed:
                raise InvalidRequestError(f"{self.weights} has the tensor {name[:120]!r}, which {CONFIG} does not know")
            if info.shape != allowed[name]:
                raise InvalidRequestError(
                    f"{self.weights}: {name!r} has shape {list(info.shape)}, {CONFIG} calls for {list(allowed[name])}"
                )

    @property
    def used(self) -> tuple[TensorInfo, ...]:
        """The tensors that it computes with, each once: a file may hold copies of its embedding."""
        names = {name for name, _ in self.layout.shapes()} | {f"{self.layout.output}.weight"}
        return tuple(info for name, info in self.tensors.items() if name in names)

    @property
    def parameters(self) -> int:
        """Numbers in the tensors that it computes with."""
        return sum(info.elements for info in self.used)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the tensors that it computes with."""
        return sum(info.size_bytes for info in self.used)

    @property
    def generation(self) -> tuple[Path, Mapping[str, Any]]:
        """What says how it decodes, and its content: older models say all in one `config.json`.

        Raises:
            InvalidRequestError: the file holds no JSON object.
        """
        if (self.folder / GENERATION).exists():
            return self.folder / GENERATION, read_object(self.folder, GENERATION)
        return self.folder / CONFIG, self.config

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """Every file of its tokenizer that is there."""
        return tokenizer_files(self.folder)

    def require(self, *names: str) -> None:
        """Look for files.

        Raises:
            InvalidRequestError: one is missing.
        """
        for name in names:
            if not (self.folder / name).is_file():
                raise InvalidRequestError(
                    f"{self.folder} has no {name}: save the model and its tokenizer there with save_pretrained"
                )

    def digest(self) -> str:
        """The sha256 of what makes the model: weights, settings and tokenizer.

        Raises:
            InvalidRequestError: there are no weights.
        """
        self.require(WEIGHTS)
        settings = [self.folder / name for name in (CONFIG, GENERATION) if (self.folder / name).is_file()]
        return files_digest(self.weights, *settings, *self.tokenizer_files)


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object in a model folder.

    Raises:
        InvalidRequestError: the folder or the file is not there, or the file holds something else.
    """
    path = folder / name
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InvalidRequestError(f"{folder} has no {name}: give the folder of a Hugging Face model") from error
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror}: give the folder of a Hugging Face model") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path} is not JSON ({error}): save the model again with save_pretrained") from error
    if not isinstance(content, dict):
        raise InvalidRequestError(f"{path} does not hold a JSON object: save the model again with save_pretrained")
    return content


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """Every file of a tokenizer that is in a folder."""
    return tuple(folder / name for name in _TOKENIZER_FILES if (folder / name).is_file())


def files_digest(*files: Path) -> str:
    """One sha256 of several files' names and contents."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
