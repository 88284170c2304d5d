"""One folder, one run; and no file that is only half there."""

import errno
from pathlib import Path

import pytest

from loadtest import output_folder
from loadtest.errors import LoadtestError, UsageError
from loadtest.output_folder import check_unused, claim, whole_file


def test_a_new_or_an_empty_folder_is_taken_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "new" / "one"):
        check_unused(out)
        assert claim(out) == out
        assert [path.name for path in out.iterdir()] == ["locust.log"]
        for again in (check_unused, claim):
            with pytest.raises(UsageError, match="is in use: give a folder that is new or empty"):
                again(out)


def test_of_two_runs_that_saw_it_empty_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_folder, "check_unused", lambda _: None)
    claim(tmp_path / "out")
    with pytest.raises(UsageError, match="is in use"):
        claim(tmp_path / "out")


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_unused(None)
    folders = [claim(None) for _ in range(4)]
    assert len(set(folders)) == 4
    assert all(folder.parent == Path("runs") and (folder / "locust.log").exists() for folder in folders)


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    with whole_file(path) as file:
        file.write(b"{}")
        assert not path.exists()
    assert path.read_bytes() == b"{}"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"

    def fill_the_disk() -> None:
        with whole_file(path) as file:
            file.write(b"{")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(LoadtestError, match=r"summary\.json cannot be written \(No space left on device\)"):
        fill_the_disk()
    assert list(tmp_path.iterdir()) == []
