"""The Multi30k example's data: its repository read, captions cleaned, one tokenizer for both languages."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples.multi30k import prepare
from nash.data.rows import read_rows
from nash.modeling.folders import load_tokenizer
from nash.recipes.recipe import FinetuneRecipe, PruneRecipe, read_recipe

ROOT = Path(__file__).parents[1]
EN = ["A man in a  RED hat.", "Two dogs run \u201cfast\u201d.", "A girl's bike."]
OTHERS = {
    "de": ["Ein Mann mit ROTEM Hut.", "Zwei Hunde laufen \u201eschnell\u201c.", "Das Fahrrad eines Ma\u0308dchens."],
    "fr": ["Un homme au chapeau rouge.", "Deux chiens courent \u00ab vite \u00bb.", "Le v\u00e9lo d\u2019une fille."],
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    raw = tmp_path / "multi30k" / prepare.IN_REPOSITORY
    raw.mkdir(parents=True)
    for split in prepare.SPLITS.values():
        for language, lines in {"en": EN, **OTHERS}.items():
            (raw / f"{split}.{language}.gz").write_bytes(gzip.compress("".join(f"{x}\n" for x in lines).encode()))
    return tmp_path / "multi30k"


def prepared(repository: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.multi30k.prepare", "--from", str(repository), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_every_split_of_both_languages(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    done = prepared(repository, out)
    assert done.returncode == 0, done.stderr
    assert "fr, test-coco: 3 rows" in done.stdout
    for language in OTHERS:
        assert sorted(path.name for path in (out / language).iterdir()) == sorted(
            [*(f"{split}.jsonl" for split in prepare.SPLITS), "tokenizer"]
        )
    rows = [json.loads(line) for line in (out / "de" / "test.jsonl").read_text().splitlines()]
    assert rows == [
        {"source": "a man in a red hat.", "target": "ein mann mit rotem hut."},
        {"source": 'two dogs run "fast".', "target": 'zwei hunde laufen "schnell".'},
        {"source": "a girl's bike.", "target": "das fahrrad eines m\u00e4dchens."},
    ]
    tokenizer = load_tokenizer(out / "de" / "tokenizer")
    for row in rows:
        for text in row.values():
            assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_the_recipes_read_what_is_written(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "example"
    assert prepared(repository, folder / "data").returncode == 0
    for name in ("finetune-de.toml", "prune-de.toml"):
        (folder / name).write_text((Path(prepare.__file__).parent / name).read_text())
    for data in (
        read_recipe(FinetuneRecipe, folder / "finetune-de.toml").data,
        read_recipe(PruneRecipe, folder / "prune-de.toml").data,
    ):
        assert data.test is not None
        for file in (data.train, data.validation, data.test):
            assert len(read_rows(file, data)) == 3


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda raw: (raw / "val.fr.gz").unlink(), "val.fr.gz"),
        (
            lambda raw: (raw / "val.de.gz").write_bytes(gzip.compress(b"one\n")),
            "validation: 3 captions in en, but 1 in de",
        ),
        (lambda raw: (raw / "val.de.gz").write_bytes(b"no gzip"), "is not Multi30k"),
    ],
)
def test_what_is_no_multi30k(repository: Path, tmp_path: Path, spoil: object, says: str) -> None:
    assert callable(spoil)
    spoil(repository / prepare.IN_REPOSITORY)
    done = prepared(repository, tmp_path / "data")
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
