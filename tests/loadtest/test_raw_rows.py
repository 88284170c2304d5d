"""The file of raw rows."""

import gzip
from pathlib import Path

from loadtest.rows import Row, RowWriter, compress, read_rows

ANSWERED = Row(1.25, 0.125, 10.5, 10.375, "dense", "g2p@dense", 200, "ok", 3, 0.5, 1.5, 8.0, 10.0, 7)
FAILED = Row(2.5, 0.0, 3.0, 3.0, "a,b", 'x"y@a,b', 0, "connection", 0, None, None, None, None, None)


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
    assert text.split("\n")[0].split(",") == list(Row._fields)
    assert list(read_rows(iter(text.splitlines(keepends=True)))) == [ANSWERED, FAILED]


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    lines = written(tmp_path).read_text().splitlines(keepends=True)
    assert list(read_rows(iter([*lines[:2], lines[1][:-1]]))) == [ANSWERED]  # all its cells, the last maybe not whole
    assert list(read_rows(iter([*lines[:2], lines[1][:9]]))) == [ANSWERED]
    assert list(read_rows(iter([]))) == []


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
