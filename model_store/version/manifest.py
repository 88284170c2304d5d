"""The manifest of one version of a model: its files, its shape, where it came from, how good it is.

A manifest has exactly one byte form (`canonical_bytes`): sorted keys, no blanks, ASCII only, no timestamps. Equal
content therefore has an equal digest wherever and whenever it was published.
"""

import hashlib
import json
from operator import ge
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from model_store.errors import CorruptStoreError, InvalidRequestError, UnknownSchemaError
from model_store.model.model import CONFIG

SCHEMA_VERSION: Literal[1] = 1
FILE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"

Kind = Literal["dense", "pruned"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


Size = Annotated[int, Field(ge=0, lt=2**63)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class FileEntry(_Record):
    """One file of a version."""

    path: Annotated[str, Field(pattern=rf"^{FILE_NAME}$")]
    sha256: Sha256
    size: Size  # bytes


class SpecSummary(_Record):
    """The shape in the few numbers that people compare; the whole shape is in `config.json`."""

    family: str
    vocab_size: int
    dense_vocab_size: int | None = None  # only if the vocabulary was trimmed
    d_model: int
    width: int | None = None  # of the hidden states, only if they were cut
    encoder_layers: int
    decoder_layers: int
    dense_encoder_layers: int
    dense_decoder_layers: int
    encoder_sparsity: float
    parameters: Size
    bytes: Size  # of the weights as stored
    dtype: str


class Lineage(_Record):
    """Where a version came from; unknown fields are left out."""

    parent: Sha256 | None = None  # digest of the version that this one was made from
    data: dict[str, Sha256] = Field(default_factory=dict)  # the data files by name
    recipe: dict[str, JsonValue] = Field(default_factory=dict)
    seed: int | None = None
    code_version: str | None = None
    precision: dict[str, str] = Field(default_factory=dict)  # of each training phase, even if the recipe left it open
    trained_from: str | None = None  # the initial weights, if they are not in the store


class MeasuredOn(_Record):
    """The rows that a version's metrics are of."""

    split: str  # "test" or "validation"
    rows: Annotated[int, Field(gt=0)]


class Manifest(_Record):
    """One version, as stored."""

    schema_version: Literal[1]
    kind: Kind
    files: tuple[FileEntry, ...]  # sorted by path
    spec: SpecSummary
    lineage: Lineage = Field(default_factory=Lineage)
    metrics: dict[str, float] = Field(default_factory=dict)
    measured_on: MeasuredOn | None = None
    licence: str | None = None

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        paths = [file.path for file in self.files]
        if any(map(ge, paths, paths[1:])):
            raise ValueError("files: paths must be unique and in ascending order")
        if CONFIG not in paths:
            raise ValueError(f"files: there is no {CONFIG}")
        return self

    @classmethod
    def create(cls, **fields: Any) -> Self:
        """A manifest of the current schema.

        Raises:
            InvalidRequestError: a field cannot be stored, such as a metric that is not a number.
        """
        try:
            manifest = cls(schema_version=SCHEMA_VERSION, **fields)
        except ValidationError as error:
            raise InvalidRequestError(f"cannot be published: {_first_line(error)}") from None
        metrics = {name: value + 0.0 for name, value in manifest.metrics.items()}  # -0.0 equals 0.0, its bytes do not
        return manifest.model_copy(update={"metrics": metrics})

    def canonical_bytes(self) -> bytes:
        """The only byte form. Fields at their default are left out, so that adding a field changes no digest."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return text.encode("ascii")

    @property
    def stored_bytes(self) -> int:
        """The size of its files and of itself; equal files are stored once."""
        return len(self.canonical_bytes()) + sum({file.sha256: file.size for file in self.files}.values())

    @property
    def digest(self) -> str:
        """sha256 of the canonical bytes, in hex."""
        return hashlib.sha256(self.canonical_bytes()).hexdigest()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read bytes back. Whether they are canonical is not looked at: that takes several times as long.

        Raises:
            UnknownSchemaError: the manifest was written by a newer program.
            CorruptStoreError: the bytes are not a manifest.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            _refuse_newer(data)
            raise CorruptStoreError(f"not a manifest: {_first_line(error)}") from None
        except (ValueError, RecursionError):
            raise CorruptStoreError("not a manifest: the bytes are not JSON") from None


def _refuse_newer(data: bytes) -> None:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return
    schema = fields.get("schema_version") if isinstance(fields, dict) else None
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise UnknownSchemaError(
            f"a manifest has schema {schema}, this program reads {SCHEMA_VERSION}: update the program"
        )


def _first_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the manifest'}: {first['msg']}"
