"""Reading the texts that are sent."""

import hashlib
from pathlib import Path

import pytest

from examples.g2p.prepare import pronunciations, split_of, workload_lines
from loadtest.client.workload import read_workload
from loadtest.errors import UsageError

EXAMPLE = Path(__file__).parents[2] / "examples" / "g2p" / "workload.jsonl"


def test_rows_are_read_in_order_and_targets_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "w.jsonl"
    content = '{"source": "one"}\n\n{"source": "two\u2028lines", "target": ["x", 1]}\r\n'.encode()
    file.write_bytes(content)
    workload = read_workload(file)
    assert workload.sources == ("one", "two\u2028lines")
    assert workload.sha256 == hashlib.sha256(content).hexdigest()
    assert workload.name == "w.jsonl"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ('"text"', "is not an object"),
        ('{"text": "a"}', "key 'source' is missing"),
        ('{"source": 3}', "source is '3'"),
        ('{"source": " "}', "not a text with something in it"),
        ('{"source": "\\ud800"}', "surrogate"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "w.jsonl"
    file.write_text(f'{{"source": "fine"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=message) as raised:
        read_workload(file)
    assert str(raised.value).startswith(f"{file}, line 2: ")
    assert str(raised.value).endswith('; write {"source": text}')


def test_files_without_rows_are_refused(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n \n")
    binary.write_bytes(b"\xff\xfe")
    for file, message in ((empty, "holds no rows"), (binary, "not UTF-8"), (tmp_path / "gone", "cannot be read")):
        with pytest.raises(UsageError, match=message):
            read_workload(file)


def test_the_examples_workload_is_what_prepare_writes() -> None:
    words = [word for word, _ in pronunciations() if split_of(word) == "test"]
    assert EXAMPLE.read_text(encoding="utf-8") == "".join(workload_lines(words))
    assert len(read_workload(EXAMPLE).sources) == 1000
