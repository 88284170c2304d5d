"""`nash generate`: what it writes, and how it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.nash.command_line import PROGRAM, Outcome, nash
from tests.tiny_models import build_tiny_t5

SOURCES = ["abc", "de", "fghij", "k"] * 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_t5(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    made = [{"id": i, "source": source, "note": "ü 漢"} for i, source in enumerate(SOURCES)]
    write(tmp_path / "in.jsonl", made)
    return made


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(model: Path, folder: Path, *arguments: str) -> Outcome:
    files = ("--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl"))
    return nash("generate", str(model), *files, "--threads", "1", *arguments)


def by_transformers(model: Path, **given: Any) -> list[str]:
    tokenizer, oracle = AutoTokenizer.from_pretrained(model), AutoModelForSeq2SeqLM.from_pretrained(model)
    texts = []
    for source in SOURCES:
        ids = oracle.generate(**tokenizer(source, return_tensors="pt"), max_new_tokens=8, **given)
        texts.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    return texts


def test_every_row_gets_its_answer(model: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    outcome = run(model, tmp_path, "--parameters", '{"max_new_tokens": 8}', "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["answered"] == len(rows)
    expected = [row | {"generated_text": text} for row, text in zip(rows, by_transformers(model), strict=True)]
    assert read(tmp_path / "out.jsonl") == expected
    again = run(model, tmp_path, "--parameters", '{"max_new_tokens": 8}')
    assert "20 rows answered, 20 of them before" in again.out
    assert read(tmp_path / "out.jsonl") == expected


def test_it_goes_on_after_the_last_whole_line(model: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    given = ("--parameters", '{"max_new_tokens": 8, "num_beams": 2, "num_return_sequences": 2}')
    assert run(model, tmp_path, *given).code == 0
    whole = (tmp_path / "out.jsonl").read_bytes()
    assert len(read(tmp_path / "out.jsonl")[0]["sequences"]) == 2
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        (tmp_path / "out.jsonl").write_bytes(whole[:cut])
        assert run(model, tmp_path, *given).code == 0
        assert (tmp_path / "out.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("lines", "arguments", "told"),
    [
        (["{"], (), "line 1 is not JSON"),
        (["[]"], (), "line 1 is not an object"),
        (['{"source": "a"}', '{"target": "b"}'], (), "line 2 has no text 'source'"),
        (['{"source": 3}'], (), "line 1 has no text 'source'"),
        (['{"source": "a"}'], ("--parameters", "{"), "--parameters is not JSON"),
        (['{"source": "a"}'], ("--parameters", "[]"), "--parameters is not an object"),
        (['{"source": "a"}'], ("--parameters", '{"colour": 1}'), "'colour' is not known: use max_new_tokens"),
        (['{"source": "a"}'], ("--parameters", '{"num_beams": 0}'), "num_beams is 0"),
        (['{"source": "a"}'], ("--parameters", '{"num_beams": true}'), "num_beams is True: give a count"),
        (['{"source": "a"}'], ("--parameters", '{"num_beams": 99}'), "num_beams is 99"),
        (['{"source": "a"}'], ("--parameters", '{"max_new_tokens": 9999}'), "max_new_tokens is 9999"),
    ],
)
def test_refusals(lines: list[str], arguments: tuple[str, ...], told: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    outcome = run(model, tmp_path, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert told in outcome.err


def test_an_output_of_something_else_is_left_alone(model: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write(tmp_path / "out.jsonl", [rows[1] | {"generated_text": "x"}])
    before = (tmp_path / "out.jsonl").read_bytes()
    outcome = run(model, tmp_path)
    assert outcome.code == 2
    assert "line 1 is not the answer to that row of the input" in outcome.err
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_kill_leaves_whole_lines_behind(model: Path, tmp_path: Path) -> None:
    rows = [{"source": "abc"}] * 20_000
    write(tmp_path / "in.jsonl", rows)
    output = tmp_path / "out.jsonl"
    command = [sys.executable, "-c", PROGRAM]
    command += ["generate", str(model), "--input", str(tmp_path / "in.jsonl"), "--output", str(output)]
    with subprocess.Popen([*command, "--threads", "1"], stderr=subprocess.DEVNULL) as process:
        for _ in range(3000):
            if output.exists() and output.stat().st_size > 0:
                break
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    done = read(output)
    assert 0 < len(done) <= len(rows)
    assert all(row["source"] == "abc" and isinstance(row["generated_text"], str) for row in done)
