"""The header parser against the safetensors library itself: whatever passes here must open there."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

from model_store.errors import InvalidRequestError
from model_store.model.safetensors_header import TensorInfo, header_length, parse_header, read_header

VALID = save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "empty": torch.zeros(0, 5)})


def parse(data: bytes) -> dict[str, TensorInfo]:
    length = header_length(data[:8], len(data))
    return parse_header(data[8 : 8 + length], len(data) - 8 - length)


def file_of(header: object, buffer_bytes: int) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(buffer_bytes)


def tensor(start: int, end: int, shape: tuple[int, ...] = (1,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def test_what_the_library_writes_is_read() -> None:
    found = {name: (info.dtype, info.shape, info.elements) for name, info in parse(VALID).items()}
    assert found == {"a": ("F32", (2, 3), 6), "b": ("BF16", (4,), 4), "empty": ("F32", (0, 5), 0)}


def test_literal_bytes() -> None:
    text = b'{"w":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"__metadata__":{"format":"pt"}}   '
    assert parse(struct.pack("<Q", len(text)) + text + b"\0\0\0\0") == {
        "w": TensorInfo(dtype="F16", shape=(2,), start=0, end=4)
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "too few"),
        (b"\x02\0\0\0\0\0\0", "too few"),
        (struct.pack("<Q", 2**63) + b"{}", "claims"),
        (struct.pack("<Q", 100_000_001) + b"{}", "limit"),
        (struct.pack("<Q", 3) + b"{}", "the file has 10"),
        (file_of(b"", 0), "begin"),
        (file_of(b" {}", 0), "begin"),
        (file_of(b"{", 0), "not valid JSON"),
        (file_of(b"{}{}", 0), "not valid JSON"),
        (file_of(b'{"a":' * 10_000, 0), "not valid JSON"),
        (file_of(b'{"\xff":1}', 0), "not valid JSON"),
        (file_of(b'{"a":NaN}', 0), "not valid JSON"),
        (file_of(b'{"a":1' + b"0" * 5000 + b"}", 0), "not valid JSON"),
        (file_of(b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4), "twice"),
        (file_of({"__metadata__": {"a": 1}}, 0), "metadata"),
        (file_of({"__metadata__": []}, 0), "metadata"),
        (file_of({"a": []}, 0), "exactly"),
        (file_of({"a": tensor(0, 4) | {"more": 1}}, 4), "exactly"),
        (file_of({"a": tensor(0, 4, dtype="F31")}, 4), "unknown dtype"),
        (file_of({"a": tensor(0, 4) | {"dtype": 5}}, 4), "unknown dtype"),
        (file_of({"a": tensor(0, 4) | {"shape": [1.0]}}, 4), "malformed"),
        (file_of({"a": tensor(0, 4) | {"shape": [True]}}, 4), "malformed"),
        (file_of({"a": tensor(0, 4, (-1,))}, 4), "malformed"),
        (file_of({"a": tensor(0, 4) | {"data_offsets": [0]}}, 4), "malformed"),
        (file_of({"a": tensor(0, 4, (2**32, 2**32, 0))}, 4), "too many elements"),
        (file_of({"a": tensor(4, 0)}, 4), "does not fill"),
        (file_of({"a": tensor(0, 4, (2,))}, 4), "does not fill"),
        (file_of({"a": tensor(0, 4), "b": tensor(0, 4)}, 4), "begins at byte 0"),
        (file_of({"a": tensor(0, 4), "b": tensor(2, 6)}, 6), "begins at byte 2"),
        (file_of({"a": tensor(0, 4), "b": tensor(8, 12)}, 12), "begins at byte 8"),
        (file_of({"a": tensor(4, 8)}, 8), "begins at byte 4"),
        (file_of({"a": tensor(0, 4)}, 3), "the tensors take 4 bytes"),
        (file_of({"a": tensor(0, 4)}, 5), "the tensors take 4 bytes"),
        (VALID[:-1], "the tensors take"),
    ],
)
def test_hostile_files(data: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse(data)


def test_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(VALID)
    assert read_header(path) == parse(VALID)
    path.write_bytes(VALID[:-1])
    with pytest.raises(InvalidRequestError, match=r"model\.safetensors is not a whole safetensors file: the tens"):
        read_header(path)


def agree_with_the_library(data: bytes) -> None:
    try:
        ours = parse(data)
    except InvalidRequestError:
        return
    try:
        theirs = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise AssertionError(f"the library refuses what was accepted: {error}") from error
    assert ours.keys() == theirs.keys()
    for name, info in ours.items():
        assert (info.dtype, list(info.shape)) == (theirs[name]["dtype"], theirs[name]["shape"])
        assert info.size_bytes == len(theirs[name]["data"])


def test_the_library_agrees_on_a_valid_file() -> None:
    agree_with_the_library(VALID)
    assert parse(VALID)


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_changed_bytes(changes: list[tuple[int, int]]) -> None:
    data = bytearray(VALID)
    for position, value in changes:
        data[position] = value
    agree_with_the_library(bytes(data))


DTYPES = st.sampled_from(["F32", "BF16", "U8", "F64", "BOOL", "F8_E4M3", "I16"])
LENGTHS = st.integers(0, 3) | st.sampled_from([-1, 2**32, 2**63, 2**64])


@given(
    st.dictionaries(
        st.text(max_size=4),
        st.fixed_dictionaries(
            {
                "dtype": DTYPES,
                "shape": st.lists(LENGTHS, max_size=3),
                "data_offsets": st.lists(st.integers(0, 16) | LENGTHS, min_size=1, max_size=3),
            }
        ),
        max_size=3,
    ),
    st.integers(0, 16),
)
def test_made_up_headers(header: dict[str, Any], buffer_bytes: int) -> None:
    agree_with_the_library(file_of(header, buffer_bytes))


@given(st.lists(st.tuples(DTYPES, st.lists(st.integers(0, 3), max_size=3)), max_size=4), st.integers(0, 5))
def test_tilings(tensors: list[tuple[str, list[int]]], stray: int) -> None:
    """Headers that are right but for, at times, one offset."""
    sizes = {"F32": 4, "BF16": 2, "U8": 1, "F64": 8, "BOOL": 1, "F8_E4M3": 1, "I16": 2}
    header, end = {}, 0
    for number, (dtype, shape) in enumerate(tensors):
        start, size = end, sizes[dtype]
        for length in shape:
            size *= length
        end = start + size
        header[str(number)] = tensor(start + (stray == number + 1), end, tuple(shape), dtype)
    data = file_of(header, end)
    agree_with_the_library(data)
    if stray == 0:
        assert len(parse(data)) == len(tensors)


@given(st.binary(max_size=64))
def test_noise(data: bytes) -> None:
    agree_with_the_library(data)
    agree_with_the_library(struct.pack("<Q", len(data)) + data)
