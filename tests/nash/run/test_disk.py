"""A full disk is named; any other error stays what it is."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from nash.errors import DiskFullError, NashError
from nash.run.disk import full_disk_named

MORE_THAN_ANY_DISK = 10**18


@pytest.mark.parametrize("error", [RuntimeError("unexpected pos"), SafetensorError("I/O"), OSError(28, "No space")])
def test_errors_of_a_full_disk_become_one_line(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(NashError, match=r"MB free.*resumes from its last"),
        full_disk_named(tmp_path, MORE_THAN_ANY_DISK),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 98752 vs 98640"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_a_limit_on_files_becomes_one_line(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(NashError, match=r"cannot be written .*: look for a quota") as failure,
        full_disk_named(tmp_path, 0),
    ):
        raise error
    assert not isinstance(failure.value, DiskFullError)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        PermissionError(errno.EACCES, "Permission denied"),
        SafetensorError("Error while deserializing header: header too small"),
    ],
)
@pytest.mark.parametrize("needed_bytes", [1, MORE_THAN_ANY_DISK], ids=["room", "no room"])
def test_what_is_not_of_writing_stays_what_it_is(tmp_path: Path, error: Exception, needed_bytes: int) -> None:
    with pytest.raises(type(error)) as caught, full_disk_named(tmp_path, needed_bytes):
        raise error
    assert caught.value is error
