"""A model folder, opened once: its contents and its shape."""

import hashlib
import json
import re
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
INDEX = "model.safetensors.index.json"  # of weights in several files, called shards
TOKENIZER = "tokenizer.json"
GENERATION = "generation_config.json"
INT4 = "int4.safetensors"  # see `int4.py`

# Two noncharacters of Unicode around those tokens of a converted tokenizer.json that no text may contain.
MARKS = ("\ufdd0", "\ufdd1")

_SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
TOKENIZER_FILES = (
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
    """A model folder whose `config.json` was read. Its other files are read only when needed."""

    folder: Path
    config: Mapping[str, Any]  # config.json, parsed
    spec: ModelSpec

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the shape of the model in a folder.

        Raises:
            InvalidRequestError: the folder holds no model.
            UnsupportedModelError: its architecture is not supported.
        """
        config = read_object(folder, CONFIG)
        try:
            return cls(folder=folder, config=config, spec=spec_of(config))
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{folder}: {error}") from error

    @property
    def layout(self) -> Layout:
        """The names of its configuration keys, tensors and sublayers."""
        return layout_of(self.spec)

    @property
    def pruned(self) -> bool:
        """Whether it has the form that `nash prune` writes."""
        return family_of(self.config["model_type"])[1]

    @property
    def weights(self) -> Path:
        """The file that says which weights it has: its one safetensors file, or the index of several."""
        single, index = self.folder / WEIGHTS, self.folder / INDEX
        return index if index.is_file() and not single.is_file() else single

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The safetensors files of its weights, by name.

        Raises:
            InvalidRequestError: there are none, or the index is damaged or names a file that is not there.
        """
        return weight_files(self.folder)

    @property
    def calibrated(self) -> bool:
        """Whether it includes weights calibrated to four bits."""
        return (self.folder / INT4).is_file()

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The header entries of its weights, by tensor name.

        Raises:
            InvalidRequestError: there are no weights, a file of them is incomplete, or they are not as the index says.
        """
        found: dict[str, TensorInfo] = {}
        places: dict[str, str] = {}
        for path in self.weight_files:
            for name, info in read_header(path).items():
                if name in found:
                    raise InvalidRequestError(
                        f"{path} and {places[name]} both have the tensor {name[:120]!r}: copy the model's files again"
                    )
                found[name], places[name] = info, path.name
        if self.weights.name == INDEX:
            for name, file in read_index(self.folder).items():
                if places.get(name) != file:
                    raise InvalidRequestError(
                        f"{self.weights} says that {file} has the tensor {name[:120]!r}, which it does not: "
                        "copy the model's files again"
                    )
        return found

    def check_weights(self) -> None:
        """Compare the header of its weights with its shape.

        Raises:
            InvalidRequestError: there are no weights, their file is incomplete, or its tensors do not fit the shape.
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
        """The tensors it computes with, each once: a file may contain copies of its embedding."""
        names = {name for name, _ in self.layout.shapes()} | {f"{self.layout.output}.weight"}
        return tuple(info for name, info in self.tensors.items() if name in names)

    @property
    def parameters(self) -> int:
        """The number of weights in the tensors it computes with."""
        return sum(info.elements for info in self.used)

    @property
    def tensor_bytes(self) -> int:
        """The size in bytes of the tensors it computes with."""
        return sum(info.size_bytes for info in self.used)

    @property
    def generation(self) -> tuple[Path, Mapping[str, Any]]:
        """The file that holds its decoding settings, and its content: in older models, `config.json`.

        Raises:
            InvalidRequestError: the file holds no JSON object.
        """
        if (self.folder / GENERATION).exists():
            return self.folder / GENERATION, read_object(self.folder, GENERATION)
        return self.folder / CONFIG, self.config

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """All files of its tokenizer that exist."""
        return tokenizer_files(self.folder)

    def require(self, *names: str) -> None:
        """Check that files exist.

        Raises:
            InvalidRequestError: one is missing.
        """
        for name in names:
            if not (self.folder / name).is_file():
                raise InvalidRequestError(
                    f"{self.folder} has no {name}: save the model and its tokenizer there with save_pretrained"
                )

    def digest(self) -> str:
        """One sha256 of everything that defines the model: weights, settings and tokenizer.

        Raises:
            InvalidRequestError: there are no weights.
        """
        settings = [self.folder / name for name in (CONFIG, GENERATION) if (self.folder / name).is_file()]
        return files_digest(*self.weight_files, *settings, *self.tokenizer_files)


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object from a model folder.

    Raises:
        InvalidRequestError: the folder or the file does not exist, or the file holds something else.
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


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of the weights in a folder, by name: `model.safetensors`, else what the index names.

    Raises:
        InvalidRequestError: there are none, or the index is damaged or names a file that is not there.
    """
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if not (folder / INDEX).is_file():
        raise InvalidRequestError(f"{folder} has no {WEIGHTS}: save the model there with save_pretrained")
    paths = tuple(folder / name for name in sorted(set(read_index(folder).values())))
    for path in paths:
        if not path.is_file():
            raise InvalidRequestError(f"{folder} has no {path.name}, which {INDEX} names: copy the model's files again")
    return paths


def read_index(folder: Path) -> dict[str, str]:
    """The file that each tensor is in, by the index of weights in several files.

    Raises:
        InvalidRequestError: the index is damaged.
    """
    places = read_object(folder, INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InvalidRequestError(f"{folder / INDEX} has no weight_map: save the model again with save_pretrained")
    for file in places.values():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise InvalidRequestError(
                f"{folder / INDEX} names the file {str(file)[:80]!r}, not model-00001-of-00002.safetensors or the "
                "like: save the model again with save_pretrained"
            )
    return places


def is_weights(name: str) -> bool:
    """Whether a file of this name holds a model's weights, or some of them."""
    return name == WEIGHTS or _SHARD.fullmatch(name) is not None


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """All tokenizer files in a folder."""
    return tuple(folder / name for name in TOKENIZER_FILES if (folder / name).is_file())


def files_digest(*files: Path) -> str:
    """One sha256 of the names and contents of several files."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
