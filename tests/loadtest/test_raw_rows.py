"""The file of raw rows."""

import gzip
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtest.client.rows import RequestRow, RowWriter, compress, read_rows
from loadtest.errors import LoadtestError

ANSWERED = RequestRow(1.25, 0.125, 10.5, 10.375, "dense", "g2p@dense", 200, "ok", 3, 0.5, 1.5, 8.0, 10.0, 7)
FAILED = RequestRow(2.5, 0.0, 3.0, 3.0, "a,b", 'x"y@a,b', 0, "connection", 0, None, None, None, None, None)


def written(folder: Path) -> Path:
    file = folder / "rows.csv"
    writer = RowWriter(file)
    writer.write(ANSWERED)
    writer.write(FAILED)
    writer.close()
    writer.close()
    return file


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    text = written(tmp_path).read_text()
    assert text.split("\n")[0].split(",") == list(RequestRow._fields)
    assert list(read_rows(iter(text.splitlines(keepends=True)))) == [ANSWERED, FAILED]


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    lines = written(tmp_path).read_text().splitlines(keepends=True)
    assert list(read_rows(iter([*lines[:2], lines[1][:-1]]))) == [ANSWERED]  # all its cells, the last maybe not whole
    assert list(read_rows(iter([*lines[:2], lines[1][:9]]))) == [ANSWERED]
    assert list(read_rows(iter([]))) == []


def test_a_line_that_is_no_row_is_told_apart(tmp_path: Path) -> None:
    head, answered, failed = written(tmp_path).read_text().splitlines(keepends=True)
    torn = answered[:20] + failed
    for bad in (torn, '"\n', "\n", "\x00\n", answered.replace("1.25", "x"), "1,2\n"):
        assert list(read_rows([head, answered, bad, failed])) == [ANSWERED, None, FAILED]


@contextmanager
def no_file_longer_than(size_bytes: int) -> Iterator[None]:
    """As a full disk, with another number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_for_a_while_costs_no_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    writer = RowWriter(file)
    with no_file_longer_than(200):
        for _ in range(5):
            writer.write(ANSWERED)
            writer.flush()
    assert len(file.read_bytes()) == 200
    assert writer.error is not None
    writer.write(FAILED)
    writer.close()
    assert writer.lost == 0
    with file.open(newline="") as lines:
        assert list(read_rows(lines)) == [*[ANSWERED] * 5, FAILED]


def test_a_disk_that_stays_full_costs_rows_that_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.csv"
    writer = RowWriter(file)
    with no_file_longer_than(200):
        for _ in range(5):
            writer.write(ANSWERED)
            writer.flush()
        monkeypatch.setattr(RowWriter, "_MOST_WAITING_BYTES", 0)
        writer.write(FAILED)
        writer.close()
    with file.open(newline="") as lines:
        rows = list(read_rows(lines))
    assert rows == [ANSWERED] * len(rows)
    assert writer.lost == 6 - len(rows) > 1


def test_what_cannot_be_compressed_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(bytes(range(256)) * 8)
    with (
        no_file_longer_than(10),
        pytest.raises(LoadtestError, match=r"rows\.csv\.gz cannot be written \(File too large"),
    ):
        compress(file)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_compression_is_repeatable(tmp_path: Path) -> None:
    archives = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        file = written(tmp_path / name)
        text = file.read_bytes()
        archives.append(compress(file).read_bytes())
        assert not file.exists()
        assert gzip.decompress(archives[-1]) == text
    assert archives[0] == archives[1]
