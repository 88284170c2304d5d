"""Read and check the header of a safetensors file, without torch and without touching the weights.

A file is eight bytes of header length (little-endian), the header (a JSON object) and one buffer. The header maps each
tensor's name to its dtype, shape and byte range; the ranges must tile the buffer without gaps or overlaps. The
safetensors library accepts every file that this module accepts.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from model_store.errors import InvalidRequestError

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_ELEMENTS = 2**63
_DTYPE_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor of a file; `start` and `end` are byte offsets in the buffer after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name.

    Raises:
        InvalidRequestError: the file breaks a rule of the format; the message names the file and the rule.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        try:
            header_bytes = header_length(prefix, size_bytes)
            return parse_header(file.read(header_bytes), size_bytes - 8 - header_bytes)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{path.name} is not a whole safetensors file: {error}") from None


def data_start(file: BinaryIO) -> int:
    """The offset of the first tensor's first byte in a file whose header was read before."""
    file.seek(0)
    return 8 + header_length(file.read(8), os.fstat(file.fileno()).st_size)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata strings that a safetensors file carries beside its tensors.

    Raises:
        InvalidRequestError: as for `read_header`.
    """
    read_header(path)
    with path.open("rb") as file:
        length = header_length(file.read(8), os.fstat(file.fileno()).st_size)
        found: dict[str, str] = json.loads(file.read(length)).get("__metadata__", {})
    return found


def header_length(prefix: bytes, file_bytes: int) -> int:
    """The header's length in bytes, from the file's first eight bytes.

    Raises:
        InvalidRequestError: it exceeds the file or the format's limit.
    """
    if len(prefix) < 8:
        raise InvalidRequestError(f"{len(prefix)} bytes are too few for a header")
    length: int = struct.unpack("<Q", prefix)[0]
    if length > _MAX_HEADER_BYTES:
        raise InvalidRequestError(f"the header claims {length} bytes, the limit is {_MAX_HEADER_BYTES}")
    if length > file_bytes - 8:
        raise InvalidRequestError(f"the header claims {length} bytes, the file has {file_bytes}")
    return length


def parse_header(header: bytes, buffer_bytes: int) -> dict[str, TensorInfo]:
    """Check a header against the length of the buffer that follows it; return the tensors by name.

    Raises:
        InvalidRequestError: it breaks a rule of the format.
    """
    if not header.startswith(b"{"):
        raise InvalidRequestError("the header does not begin with '{'")
    try:
        fields = json.loads(header.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the header is not valid JSON ({error})") from None
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidRequestError("__metadata__ does not map strings to strings")
    tensors = {name: _tensor(name, value) for name, value in fields.items()}
    _check_tiling(tensors, buffer_bytes)
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key occurs twice")
    return fields


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _tensor(name: str, value: object) -> TensorInfo:
    name = name[:120]  # it is only used in messages
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise InvalidRequestError(f"tensor {name!r} does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        raise InvalidRequestError(f"tensor {name!r} has the unknown dtype {str(dtype)[:20]!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise InvalidRequestError(f"tensor {name!r} has a malformed shape or data_offsets")
    info = TensorInfo(dtype=dtype, shape=tuple(shape), start=offsets[0], end=offsets[1])
    if _partial_product_overflows(info.shape):
        raise InvalidRequestError(f"tensor {name!r} has too many elements")
    if info.elements * _DTYPE_BYTES[dtype] != info.size_bytes:
        raise InvalidRequestError(
            f"tensor {name!r} of shape {str(shape)[:60]} and dtype {dtype} does not fill its {info.size_bytes} bytes"
        )
    return info


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < _MAX_ELEMENTS for item in value)


def _partial_product_overflows(shape: tuple[int, ...]) -> bool:
    """Whether a reader that multiplies 64-bit numbers from left to right would overflow before a zero."""
    product = 1
    for length in shape:
        product *= length
        if product >= _MAX_ELEMENTS // 8:
            return True
    return False


def _check_tiling(tensors: Mapping[str, TensorInfo], buffer_bytes: int) -> None:
    expected = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != expected:
            raise InvalidRequestError(
                f"tensor {name[:120]!r} begins at byte {info.start} of the buffer instead of {expected}"
            )
        expected = info.end
    if expected != buffer_bytes:
        raise InvalidRequestError(f"the tensors take {expected} bytes, the file holds {buffer_bytes}")
