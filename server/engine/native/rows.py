"""The input of one pass, and the memory it needs."""

import ctypes
from collections.abc import Sequence
from ctypes import c_int32, c_int64
from typing import Any

import torch
from torch import Tensor

from server.engine.native.arena import Arena
from server.engine.native.operator import library as native


class RowBuffer:
    """The rows of a pass, in memory the operator reads."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.structure = native.Rows()
        self._arrays: dict[str, Any] = {"tokens": (c_int64 * capacity)()}
        for name in ("positions", "slots", "lengths", "memory_slots", "wanted_rows"):
            self._arrays[name] = (c_int32 * capacity)()
        for name, array in self._arrays.items():
            setattr(self.structure, name, ctypes.cast(array, type(getattr(self.structure, name))))

    def fill(
        self,
        *,
        tokens: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        lengths: Sequence[int],
        memory_slots: Sequence[int],
        wanted_rows: Sequence[int] = (),
    ) -> None:
        """Set all rows at once; every list but `wanted_rows` has one entry per row."""
        arrays = self._arrays
        rows = self.structure.rows = len(tokens)
        arrays["tokens"][:rows] = tokens
        arrays["positions"][:rows] = positions
        arrays["slots"][:rows] = slots
        arrays["lengths"][:rows] = lengths
        arrays["memory_slots"][:rows] = memory_slots
        self.structure.wanted = len(wanted_rows)
        arrays["wanted_rows"][: len(wanted_rows)] = wanted_rows


def make_workspace(
    arena: Arena,
    *,
    rows: int,
    threads: int,
    width: int,
    widest_attention: int,
    widest_units: int,
    widest_input: int,
    longest_scores: int,
    head_dim: int,
) -> native.Workspace:
    """Memory for a pass of `rows` rows; widths count numbers, not bytes."""
    score_count = longest_scores + -(-head_dim // 16) * 16  # plus a query
    input_bytes = -(-widest_input * torch.float32.itemsize // 64) * 64

    def numbers(count: int) -> int:
        return arena.take(count, torch.float32).data_ptr()

    def raw(count: int) -> int:
        return arena.take(count, torch.uint8).data_ptr()

    return native.Workspace(
        hidden=numbers(rows * width),
        queries=numbers(rows * widest_attention),
        context=numbers(rows * widest_attention),
        units=numbers(rows * widest_units),
        inputs=raw(rows * input_bytes),
        scales=numbers(rows),
        scores=numbers(threads * native.QUERIES * score_count),
        private_inputs=raw(threads * native.PRIVATE_ROWS * input_bytes),
        input_bytes=input_bytes,
        score_count=score_count,
    )


def with_hidden(workspace: native.Workspace, hidden: Tensor) -> native.Workspace:
    """The same memory except for the hidden states, which outlive a pass."""
    copy = native.Workspace.from_buffer_copy(workspace)
    copy.hidden = hidden.data_ptr()
    return copy
