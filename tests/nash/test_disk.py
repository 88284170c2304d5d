"""A full disk is named; any other error stays what it is."""

from pathlib import Path

import pytest
from safetensors import SafetensorError

from nash.disk import full_disk_named
from nash.errors import NashError

MORE_THAN_ANY_DISK = 10**18


@pytest.mark.parametrize("error", [RuntimeError("unexpected pos"), SafetensorError("I/O"), OSError(28, "No space")])
def test_errors_of_a_full_disk_become_one_line(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(NashError, match=r"MB free.*goes on from its last"),
        full_disk_named(tmp_path, MORE_THAN_ANY_DISK),
    ):
        raise error


def test_with_room_left_an_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), full_disk_named(tmp_path, 1):
        raise RuntimeError("shapes")
