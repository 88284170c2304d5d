"""Memory for weights: aligned, zero, and of the kind that a system gives huge pages to."""

from pathlib import Path

import pytest
import torch

from server.engine.native.arena import Arena

MAPS = Path("/proc/self/maps")


def test_what_is_taken_is_zero_aligned_and_apart() -> None:
    arena = Arena()
    first, second = arena.take(3, torch.float32), arena.take(5, torch.int8)
    assert (first.shape, second.shape) == ((3,), (5,))
    assert first.data_ptr() % 64 == second.data_ptr() % 64 == 0
    first.fill_(1.0)
    assert not second.any()
    assert arena.taken_bytes == 128


def test_what_is_larger_than_a_chunk_has_one_of_its_own() -> None:
    arena = Arena()
    large = arena.take(65 * 2**20, torch.int8)
    large[-1] = 1
    assert large.numel() == 65 * 2**20
    assert large.data_ptr() % (2 * 2**20) == 0, "huge pages begin at their own multiples"


@pytest.mark.skipif(not MAPS.exists(), reason="the system does not tell what memory is mapped how")
def test_the_memory_is_private() -> None:
    """Shared memory, which mmap gives unless it is told otherwise, has huge pages on hardly any system."""
    arena = Arena()
    address = arena.take(1, torch.float32).data_ptr()
    [kind] = [
        permissions
        for span, permissions, *_ in (line.split() for line in MAPS.read_text().splitlines())
        if int(span.split("-")[0], 16) <= address < int(span.split("-")[1], 16)
    ]
    assert kind == "rw-p"
