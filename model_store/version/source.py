"""What can be published: a plain Hugging Face model directory of known, harmless files.

There are two checks. `list_files` checks the names in the user's directory before anything is copied; `inspect` checks
the bytes that were copied and will be stored.
"""

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_store.errors import InvalidRequestError
from model_store.model.finite import check_finite
from model_store.model.int4 import check_int4_file
from model_store.model.model import CONFIG, GENERATION, INDEX, INT4, TOKENIZER, WEIGHTS, Model, weight_files
from model_store.model.spec import ModelSpec
from model_store.version.manifest import FILE_NAME, Kind

_REQUIRED = (CONFIG, TOKENIZER, GENERATION)  # beside the weights

_TEXT_SUFFIXES = (".txt", ".md", ".toml", ".jsonl")
_SENTENCEPIECE_SUFFIXES = (".model", ".spm")
_SUFFIXES = (".json", ".safetensors", *_SENTENCEPIECE_SUFFIXES, *_TEXT_SUFFIXES)
_DTYPES: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# The first bytes of files that could run code when opened: pickles of protocol 2 to 5 and archives around them.
_DANGEROUS_STARTS = (
    *((bytes((0x80, protocol)), "a pickle") for protocol in range(2, 6)),
    (b"PK\x03\x04", "a zip archive, as torch saves pickles"),
    (b"\x1f\x8b", "a gzip archive"),
)


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """What `inspect` found in a model directory."""

    spec: ModelSpec
    kind: Kind
    parameters: int  # elements of all tensors that the model uses, each counted once
    tensor_bytes: int
    dtype: str  # torch's name; several, if the file mixes them, are joined by "+"


def list_files(directory: Path) -> dict[str, int]:
    """Names and sizes in bytes of the files of the model in `directory`, without hidden ones.

    Raises:
        InvalidRequestError: it is not a directory, lacks a file, or contains something that does not belong there.
    """
    if not directory.is_dir():
        raise InvalidRequestError(f"{directory} is not a directory: give the folder that holds config.json")
    sizes: dict[str, int] = {}
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        _check_entry(entry, directory)
        sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    weights = {path.name for path in weight_files(directory)}
    for name in _REQUIRED:
        if name not in sizes:
            needed = ", ".join((CONFIG, WEIGHTS, TOKENIZER, GENERATION))
            raise InvalidRequestError(f"{directory} has no {name}: a model directory needs {needed}")
    for name in sizes:
        if (name.endswith(".safetensors") and name not in weights | {INT4}) or (name == INDEX and WEIGHTS in weights):
            raise InvalidRequestError(
                f"{directory / name} is not part of the model: all weights must be in one {WEIGHTS}, or in the files "
                f"that {INDEX} names; move it away"
            )
    if len({name.lower() for name in sizes}) != len(sizes):
        raise InvalidRequestError(f"{directory} has file names that differ only in case: rename one")
    return sizes


def _check_entry(entry: os.DirEntry[str], directory: Path) -> None:
    if entry.is_symlink():
        raise InvalidRequestError(f"{entry.path} is a symbolic link: put the file itself there")
    if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
        raise InvalidRequestError(f"{entry.path} is not a regular file: move it out of {directory}")
    if danger := _danger(Path(entry.path)):
        raise InvalidRequestError(f"{entry.path} is {danger}: delete it; weights go into {WEIGHTS}")
    if not re.fullmatch(FILE_NAME, entry.name) or not entry.name.endswith(_SUFFIXES):
        raise InvalidRequestError(
            f"{entry.path} does not belong in a model directory: move it away "
            f"(file names that belong there end in {', '.join(_SUFFIXES)})"
        )


def _danger(path: Path) -> str | None:
    if path.suffix == ".safetensors" and _begins_with_a_header(path):
        return None  # the length of a header may have the bytes of a pickle: 1152 is 80 04
    return next((what for magic, what in _DANGEROUS_STARTS if _starts_with(path, magic)), None)


def _begins_with_a_header(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON object, and the object."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def inspect(directory: Path) -> ModelSource:
    """Check the content of every file of a model directory whose names passed `list_files`.

    Raises:
        InvalidRequestError: a file is not what its name says, or the files do not fit together.
        UnsupportedModelError: `config.json` describes an unsupported architecture.
    """
    for path in sorted(directory.iterdir()):
        _check_content(path)
    model = Model.open(directory)
    spec = model.spec
    model.check_weights()
    _check_dtypes(model)
    for path in model.weight_files:
        check_finite(path)
    if (directory / INT4).exists():
        check_int4_file(spec, directory / INT4, model.weight_files)
    _check_tokenizer(directory / TOKENIZER, spec)
    return ModelSource(
        spec=spec,
        kind="pruned" if model.pruned else "dense",
        parameters=model.parameters,
        tensor_bytes=model.tensor_bytes,
        dtype="+".join(sorted({_DTYPES[info.dtype] for info in model.used})),
    )


def check_publishable(directory: Path) -> None:
    """Refuse whatever `Store.publish` would refuse, without needing a store.

    Raises:
        InvalidRequestError: the directory is not a publishable model.
    """
    list_files(directory)
    inspect(directory)


def _check_content(path: Path) -> None:
    if danger := _danger(path):
        raise InvalidRequestError(f"{path.name} is {danger}: delete it; weights go into {WEIGHTS}")
    if path.suffix == ".json":
        content = _read_json(path)
        if path.name.endswith("config.json") and _has_key(content, "auto_map"):
            raise InvalidRequestError(f"{path.name} asks for remote code ('auto_map'): remove it, no code is loaded")
    elif path.suffix in _TEXT_SUFFIXES:
        _read_text(path)
    elif path.suffix in _SENTENCEPIECE_SUFFIXES and not _starts_with(path, b"\n"):
        raise InvalidRequestError(f"{path.name} is not a SentencePiece model: delete it or replace it")


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{path.name} is not UTF-8 text: delete it or replace it") from None
    if "\0" in text:
        raise InvalidRequestError(f"{path.name} is not text: delete it or replace it")
    return text


def _read_json(path: Path) -> object:
    try:
        content: object = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path.name} is not valid JSON ({error})") from None
    return content


def _has_key(content: object, key: str) -> bool:
    left = [content]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if key in value:
                return True
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return False


def _check_dtypes(model: Model) -> None:
    for name, info in model.tensors.items():
        if info.dtype not in _DTYPES:
            raise InvalidRequestError(
                f"{model.weights.name}: {name!r} has dtype {info.dtype}: save it as {', '.join(_DTYPES.values())}"
            )


def _check_tokenizer(path: Path, spec: ModelSpec) -> None:
    from tokenizers import Tokenizer  # here, for listing a store needs none of it

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  tokenizers raises nothing more specific
        raise InvalidRequestError(f"{path.name} cannot be loaded as a tokenizer ({error})") from None
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    vocab_size = max(spec.vocab_size, spec.target_vocab_size)
    if largest >= vocab_size:
        raise InvalidRequestError(
            f"{path.name} has the token id {largest}, but {CONFIG} has a vocabulary of {vocab_size}: "
            "they do not belong together"
        )
