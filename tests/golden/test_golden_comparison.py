"""The golden tests' own rules: what is a difference, what a mask hides, and that nothing is written in passing."""

from pathlib import Path
from typing import Any

import pytest

from tests.golden import masks
from tests.golden.expected_files import Golden

SEEN = {"text": "a", "count": 3, "share": 0.5, "list": [1, 2], "none": None, "took_ms": 7.25}
HIDDEN = masks.times("took_ms")


@pytest.fixture
def golden(tmp_path: Path) -> Golden:
    """With one file, of what was seen."""
    with pytest.raises(pytest.fail.Exception, match="was written"):
        Golden(update=True, folder=tmp_path).check("seen", SEEN, HIDDEN)
    return Golden(update=False, folder=tmp_path)


def test_the_same_is_no_difference(golden: Golden) -> None:
    golden.check("seen", SEEN | {"share": 0.50001, "took_ms": 900}, HIDDEN)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text": "b"}, "text is 'b', expected is 'a'"),
        ({"count": 4}, "count is 4, expected is 3"),
        ({"count": 3.0}, "count is 3.0, expected is 3"),
        ({"count": True}, "count is True, expected is 3"),
        ({"share": 0.51}, "share is 0.51, expected is 0.5"),
        ({"list": [1, 2, 3]}, "list has 3 items, expected are 2"),
        ({"list": [1, 3]}, "list[1] is 3, expected is 2"),
        ({"none": 0}, "none is 0, expected is None"),
        ({"new": None}, "new is new"),
        ({"took_ms": None}, "took_ms is None, expected is '<time>'"),
        ({"took_ms": -1.0}, "took_ms is -1.0, expected is '<time>'"),
    ],
)
def test_differences(golden: Golden, change: dict[str, Any], says: str) -> None:
    with pytest.raises(AssertionError) as caught:
        golden.check("seen", SEEN | change, HIDDEN)
    assert says in str(caught.value)


def test_what_is_gone(golden: Golden) -> None:
    with pytest.raises(AssertionError, match="text is not there any more"):
        golden.check("seen", {key: value for key, value in SEEN.items() if key != "text"}, HIDDEN)


def test_a_missing_file_is_a_fault(golden: Golden) -> None:
    with pytest.raises(AssertionError, match="is missing"):
        golden.check("unseen", SEEN)
    assert not (golden.folder / "unseen.json").exists()


def test_an_update_writes_what_differs_and_says_so(golden: Golden) -> None:
    updating = Golden(update=True, folder=golden.folder)
    before = (golden.folder / "seen.json").read_text()
    updating.check("seen", SEEN | {"share": 0.50001}, HIDDEN)
    assert (golden.folder / "seen.json").read_text() == before
    with pytest.raises(pytest.fail.Exception, match="was written"):
        updating.check("seen", SEEN | {"share": 0.6}, HIDDEN)
    golden.check("seen", SEEN | {"share": 0.6}, HIDDEN)
