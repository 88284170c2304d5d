"""The manifest of one version of a model: its files, its shape, where it came from, how good it is.

A manifest has exactly one byte form (`canonical_bytes`): sorted keys, no blanks, ASCII only, no timestamps. Equal
content therefore has an equal digest wherever and whenever it was published.
"""

import hashlib
import json
import math
from operator import ge
from typing import Annotated, Any, Literal, Self

import msgspec

from model_store.errors import CorruptStoreError, InvalidRequestError, UnknownSchemaError
from model_store.model.model import CONFIG

SCHEMA_VERSION: Literal[1] = 1
FILE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"

Kind = Literal["dense", "pruned"]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


# Not pydantic, as elsewhere: a listing reads ten thousand manifests, and most commands need nothing else of it.
class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    def document(self) -> dict[str, Any]:
        """All its fields as JSON has them, defaults included."""
        return {name: _plain(getattr(self, name)) for name in self.__struct_fields__}


class FileEntry(_Record, frozen=True, kw_only=True):
    """One file of a version."""

    path: Annotated[str, msgspec.Meta(pattern=rf"\A{FILE_NAME}\Z")]
    sha256: Sha256
    size: Size  # bytes


class SpecSummary(_Record, frozen=True, kw_only=True):
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


class Lineage(_Record, frozen=True, kw_only=True):
    """Where a version came from; unknown fields are left out."""

    parent: Sha256 | None = None  # digest of the version that this one was made from
    data: dict[str, Sha256] = {}  # the data files by name
    recipe: dict[str, Any] = {}  # JSON
    seed: int | None = None
    code_version: str | None = None
    precision: dict[str, str] = {}  # of each training phase, even if the recipe left it open
    trained_from: str | None = None  # the initial weights, if they are not in the store


class MeasuredOn(_Record, frozen=True, kw_only=True):
    """The rows that a version's metrics are of."""

    split: str  # "test" or "validation"
    rows: Annotated[int, msgspec.Meta(gt=0)]


class Manifest(_Record, frozen=True, kw_only=True):
    """One version, as stored."""

    schema_version: Literal[1]
    kind: Kind
    files: tuple[FileEntry, ...]  # sorted by path
    spec: SpecSummary
    lineage: Lineage = msgspec.field(default_factory=Lineage)
    metrics: dict[str, float] = {}
    measured_on: MeasuredOn | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        """Check what no single field shows."""
        paths = [file.path for file in self.files]
        if any(map(ge, paths, paths[1:])):
            raise ValueError("files: paths must be unique and in ascending order")
        if CONFIG not in paths:
            raise ValueError(f"files: there is no {CONFIG}")

    @classmethod
    def create(cls, **fields: Any) -> Self:
        """A manifest of the current schema.

        Raises:
            InvalidRequestError: a field cannot be stored, such as a metric that is not a number.
        """
        for name, value in fields.get("metrics", {}).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InvalidRequestError(f"cannot be published: metrics.{name} is {value!r}: give a finite number")
        # -0.0 equals 0.0, its bytes do not.
        metrics = {name: float(value) + 0.0 for name, value in fields.pop("metrics", {}).items()}
        given = fields | {"metrics": metrics, "schema_version": SCHEMA_VERSION}
        try:
            data = msgspec.convert({name: _plain(value) for name, value in given.items()}, cls).canonical_bytes()
            # As it will be read: half a character can be written, and not read again.
            return _decoder.decode(data)  # type: ignore[return-value] # there are no subclasses
        except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
            raise InvalidRequestError(f"cannot be published: {error}") from None

    def canonical_bytes(self) -> bytes:
        """The only byte form. Fields at their default are left out, so that adding a field changes no digest."""
        fields = msgspec.to_builtins(self)
        if not fields["lineage"]:
            del fields["lineage"]
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
            return _decoder.decode(data)  # type: ignore[return-value] # there are no subclasses
        except msgspec.ValidationError as error:
            _refuse_newer(data)
            raise CorruptStoreError(f"not a manifest: {error}") from None
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise CorruptStoreError("not a manifest: the bytes are not JSON") from None


_decoder = msgspec.json.Decoder(Manifest)


def _plain(value: Any) -> Any:
    """What JSON has for a field's value."""
    if isinstance(value, _Record):
        return value.document()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


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
