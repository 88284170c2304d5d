"""A full disk is named; any other error stays what it is."""

from pathlib import Path

import pytest
from safetensors import SafetensorError

from nash.disk import full_disk_named
from nash.errors import DiskFullError, NashError

MORE_THAN_ANY_DISK = 10**18


@pytest.mark.parametrize("error", [RuntimeError("unexpected pos"), SafetensorError("I/O"), OSError(28, "No space")])
def test_errors_of_a_full_disk_become_one_line(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(NashError, match=r"MB free.*goes on from its last"),
        full_disk_named(tmp_path, MORE_THAN_ANY_DISK),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 98752 vs 98640"),
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


def test_with_room_left_an_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), full_disk_named(tmp_path, 1):
        raise RuntimeError("shapes")
