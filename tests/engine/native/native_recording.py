"""Calls of the native operator, written down with all memory that they read, so that another processor repeats them.

Weights are packed the same way on every set of instructions, and every call gets all it needs through its arguments:
a recording made on x86 runs on ARM, where neon_driver.cpp makes the calls again.
"""

import ctypes
import struct
from collections.abc import Callable, Iterator
from ctypes import Structure, c_void_p
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from server.engine.native.arena import Arena
from server.engine.native.backend import NativeBackend
from server.engine.native.operator import library as native

_ALIGNMENT = 64
_ARGUMENTS, _OUTPUTS = 8, 2  # of a call at most, as the driver knows
_NUMBER, _OFFSET, _ANSWER = range(3)


@dataclass(frozen=True)
class Span:
    """Memory of the image: an offset and a size in bytes."""

    at: int
    bytes: int


@dataclass
class Call:
    """One call, and what it left on the machine where it was recorded."""

    function: str
    arguments: list[tuple[int, int]]  # a kind and its value
    number: float = 0.0  # the one argument that is a double, where there is one
    outputs: list[Span] = field(default_factory=list)
    answer: int = 0
    results: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class _Region:
    address: int
    span: Span


class Recording:
    """A library in whose place it stands, which it calls, and what was called.

    A backend that is built over it is added with `add` before anything is computed with it.
    """

    def __init__(self, library: native.Library) -> None:
        self._library = library
        self._image = bytearray()
        self._pointers: list[tuple[int, int]] = []
        self._arenas: list[_Region] = []
        self._arrays: dict[int, int] = {}  # places in the image of what the last call's structures point to
        self._constant: dict[int, int] = {}  # places of structures that no call changes
        self._backends: list[NativeBackend] = []  # kept, or their addresses would be others'
        self._packed: list[tuple[list[int], bytes]] = []  # since the last backend was added
        self._pools: dict[int, int] = {}  # to the calls that made them
        self.calls: list[Call] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self._library, name)
        return function

    def pool_create(self, threads: int, *placement: object) -> int | None:
        """A pool, where the system likes to have it."""
        pool: int | None = self._library.pool_create(threads, *placement)
        if pool is not None:
            self._pools[pool] = len(self.calls)
            self.calls.append(Call("nash_pool_create", [(_NUMBER, threads)]))
        return pool

    def pack(self, weights: int, outputs: int, inputs: int, dtype: int, *packed: int | None) -> None:
        """Weights are packed again where the calls are repeated: what is packed here does not go into the image."""
        self._library.pack(weights, outputs, inputs, dtype, *packed)
        floats = ctypes.string_at(weights, 4 * outputs * inputs)
        self._packed.append(([outputs, inputs, dtype, *(at or 0 for at in packed)], floats))

    def add(self, backend: NativeBackend) -> None:
        """Take the memory of a backend, as it is, into the image."""
        self._backends.append(backend)
        for arena in (backend._weights, backend._caches):
            for address, size in _extents(arena):
                self._arenas.append(_Region(address, self._allocate(ctypes.string_at(address, size))))
        for (outputs, inputs, dtype, *addresses), floats in self._packed:
            lanes = -(-outputs // native.TILE) * native.TILE
            sizes = (self._library.packed_bytes(outputs, inputs, dtype), 4 * lanes, 4 * lanes)
            places = [self._locate(address) if address else None for address in addresses]
            for place, size in zip(places, sizes, strict=True):
                if place is not None:
                    self._image[place : place + size] = bytes(size)
            arguments = [(_OFFSET, self._allocate(floats).at), (_NUMBER, outputs), (_NUMBER, inputs), (_NUMBER, dtype)]
            arguments += [(_NUMBER, 0) if place is None else (_OFFSET, place) for place in places]
            self.calls.append(Call("nash_pack", arguments))
        self._packed = []

    def encode(self, encoder: Structure, decoder: Structure, rows: native.Rows, *others: Any) -> int:
        """Nothing to be seen comes of it: what was cached is read by later calls."""
        return self._call("encode", rows, (encoder, decoder, rows, *others), {})

    def decode(self, decoder: native.Stack, rows: native.Rows, *others: Any) -> None:
        """Its logits are kept."""
        logits = others[-1]
        self._call("decode", rows, (decoder, rows, *others), {logits: 4 * rows.wanted * decoder.output.outputs})

    def decode_ahead(self, decoder: native.Stack, rows: native.Rows, *others: Any) -> int:
        """Its tokens and their logits are kept."""
        ahead: native.Ahead = others[-1]
        count = ahead.steps * rows.rows
        outputs = {_address(ahead.tokens): 8 * count, _address(ahead.max_logits): 4 * count}
        return self._call("decode_ahead", rows, (decoder, rows, *others), outputs)

    def write(self, path: Path) -> None:
        """Write what the driver reads."""
        with path.open("wb") as file:
            file.write(struct.pack("<3q", len(self._image), len(self._pointers), len(self.calls)))
            file.write(self._image)
            for pointer in self._pointers:
                file.write(struct.pack("<2q", *pointer))
            for call in self.calls:
                padded = call.arguments + [(_NUMBER, 0)] * (_ARGUMENTS - len(call.arguments))
                spans = call.outputs + [Span(0, 0)] * (_OUTPUTS - len(call.outputs))
                file.write(call.function.encode().ljust(32, b"\0"))
                file.write(struct.pack(f"<{_ARGUMENTS}q", *(kind for kind, _ in padded)))
                file.write(struct.pack(f"<{_ARGUMENTS}q", *(value for _, value in padded)))
                file.write(struct.pack("<d", call.number))
                for span in spans:
                    file.write(struct.pack("<2q", span.at, span.bytes))

    def read_results(self, path: Path) -> list[Call]:
        """The calls as they were repeated; `path` is what the driver wrote."""
        repeated, data, at = [], path.read_bytes(), 0
        for call in self.calls:
            (answer,) = struct.unpack_from("<i", data, at)  # of functions that return something: 32 bits of it
            at += 8
            results = []
            for span in call.outputs:
                results.append(data[at : at + span.bytes])
                at += span.bytes
            repeated.append(replace(call, answer=answer, results=results))
        assert at == len(data)
        return repeated

    def _call(self, name: str, rows: native.Rows, arguments: tuple[Any, ...], outputs: dict[int, int]) -> int:
        self._arrays = {}
        doubles = [each for each in arguments if isinstance(each, float)]
        assert len(doubles) <= 1, "the driver knows one"
        whole = [self._argument(each, rows.rows) for each in arguments if not isinstance(each, float)]
        call = Call(f"nash_{name}", whole, number=sum(doubles))
        call.outputs = [Span(self._locate(address), size) for address, size in outputs.items()]
        call.answer = getattr(self._library, name)(*arguments) or 0
        call.results = [ctypes.string_at(address, size) for address, size in outputs.items()]
        self.calls.append(call)
        return call.answer

    def _argument(self, value: Any, rows: int) -> tuple[int, int]:
        if isinstance(value, Structure):
            return _OFFSET, self._place(value, rows)
        return (_ANSWER, self._pools[value]) if value in self._pools else (_OFFSET, self._locate(value))

    def _place(self, structure: Structure, rows: int) -> int:
        """Copy a structure, and those that it points to, into the image."""
        address = ctypes.addressof(structure)
        if address in self._constant:
            return self._constant[address]
        at = self._allocate(bytes(structure)).at
        if isinstance(structure, native.Stack | native.Workspace):
            self._constant[address] = at
        self._relocate(structure, at, rows)
        return at

    def _relocate(self, structure: Structure, at: int, rows: int) -> None:
        for name, kind, offset in _fields(structure):
            value = getattr(structure, name)
            if issubclass(kind, Structure):
                self._relocate(value, at + offset, rows)
            elif kind is c_void_p:
                if value:
                    self._pointers.append((at + offset, self._locate(value)))
            elif issubclass(kind, ctypes._Pointer) and value:
                count = _count(structure, name, rows)
                size = count * ctypes.sizeof(kind._type_)
                target = self._allocate(ctypes.string_at(value, size)).at
                if issubclass(kind._type_, Structure):
                    for i in range(count):
                        self._relocate(value[i], target + i * ctypes.sizeof(kind._type_), rows)
                self._arrays[_address(value)] = target
                self._pointers.append((at + offset, target))

    def _allocate(self, content: bytes) -> Span:
        self._image.extend(bytes(-len(self._image) % _ALIGNMENT))
        at = len(self._image)
        self._image.extend(content)
        return Span(at, len(content))

    def _locate(self, address: int) -> int:
        if address in self._arrays:
            return self._arrays[address]
        for region in self._arenas:
            if region.address <= address < region.address + region.span.bytes:
                return region.span.at + address - region.address
        raise AssertionError(f"an argument points to {address:#x}, which is in no memory that was recorded")


def _fields(structure: Structure) -> Iterator[tuple[str, Any, int]]:
    for name, kind in type(structure)._fields_:  # type: ignore[misc]
        yield name, kind, getattr(type(structure), name).offset


def _address(pointer: Any) -> int:
    return ctypes.cast(pointer, c_void_p).value or 0


def _count(holder: Structure, name: str, rows: int) -> int:
    """How many things a pointer of a structure points to."""
    if isinstance(holder, native.Stack):
        return int(holder.layers)
    if isinstance(holder, native.Ahead):
        return int(holder.ends) if name == "end_tokens" else int(holder.steps) * rows
    assert isinstance(holder, native.Rows)
    return rows


def _extents(arena: Arena) -> Iterator[tuple[int, int]]:
    """Address and size of what was taken of each chunk."""
    for chunk in arena._chunks:
        free = len(arena._free) if chunk is arena._chunks[-1] else 0
        yield chunk.data_ptr(), len(chunk) - free
