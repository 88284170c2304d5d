"""`nash init` writes a recipe that `nash prune` takes as it stands."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nash.recipes.recipe import PruneRecipe, read_recipe
from tests.nash.command_line import nash
from tests.tiny_families import CASES, build_tiny
from tests.tiny_models import build_tiny_t5

LETTERS = "abcdefghijklmnopqrst"
# Rows of each kind of task, under the names that such data usually have.
KINDS: dict[str, list[dict[str, Any]]] = {
    "phonemes": [{"word": each, "phonemes": f"{each.upper()} AE1 T"} for each in LETTERS],
    "exact": [{"source": each, "target": [each * 2, each]} for each in LETTERS],
    "summarization": [
        {"article": f"{each} b c d e f g h i j k l m n o", "summary": f"{each} b c d"} for each in LETTERS
    ],
    "translation": [{"translation": {"en": f"{each} b c d", "de": f"d c b {each}"}} for each in LETTERS],
    "question_answering": [{"question": f"who is {each}", "answers": {"text": [each, "b"]}} for each in LETTERS],
    "classification": [{"text": each, "label": "good" if i % 2 else "bad"} for i, each in enumerate(LETTERS)],
    "correlation": [{"text": f"{each} {i}", "score": f"{i / 10}"} for i, each in enumerate(LETTERS + "uvw")],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one with few positions, and data of every kind."""
    folder = tmp_path_factory.mktemp("init")
    build_tiny_t5(folder / "My Model")
    build_tiny(CASES["bart"], folder / "bart")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "My Model" / file, folder / "bart")
    for kind, rows in KINDS.items():
        (folder / kind).mkdir()
        for split in ("train", "validation"):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / kind / f"{split}.jsonl").write_text(text)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_for_each_metric(folder: Path, tmp_path: Path, kind: str) -> None:
    recipe = tmp_path / "recipe.toml"
    store = tmp_path / "store"
    made = nash("init", "--model", folder / "My Model", "--data", folder / kind / "train.jsonl", "--out", recipe)
    assert made.code == 0, made.err
    read = read_recipe(PruneRecipe, recipe)
    assert (read.metric, read.name) == (kind, "my-model")
    planned = nash("prune", recipe, "--store", store, "--out", tmp_path / "run", "--dry-run", "--json").document()
    assert planned["rows"] == {split: len(KINDS[kind]) for split in ("training", "validation", "test")}
    assert not store.exists()


def test_a_folder_of_splits_and_few_positions(folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(folder / "exact", tmp_path / "data"))
    (data / "test.jsonl").write_text((data / "train.jsonl").read_text())
    with (data / "train.jsonl").open("a") as file:
        file.write(json.dumps({"source": "a" * 200, "target": "b"}) + "\n")
    out = tmp_path / "r.toml"
    document = nash("init", "--model", folder / "bart", "--train", data, "--out", out, "--json").document()
    assert document == {"path": str(out), "metric": "exact", "name": "bart"}
    read = read_recipe(PruneRecipe, out)
    assert read.data.test is not None
    assert read.data.test.samefile(data / "test.jsonl")
    assert "longer ones, up to 20" in out.read_text()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--out", "taken.toml"], "taken.toml already exists"),
        (["--out", "nowhere/r.toml"], "nowhere is not a folder"),
        (["--train", "alone.jsonl"], "give --eval"),
        (["--train", "absent.jsonl", "--eval", "alone.jsonl"], "absent.jsonl cannot be read"),
        (["--train", "alone.jsonl", "--eval", "alone.jsonl"], "no two columns with a text in every row (it has a)"),
        (["--model", "./absent"], "./absent is not a folder"),
        (["--source-column", "text"], "column 'text' is missing"),
    ],
)
def test_refusals(folder: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], says: str) -> None:
    """One line, and nothing is written over."""
    monkeypatch.chdir(folder)
    (folder / "taken.toml").write_text("precious")
    (folder / "alone.jsonl").write_text('{"a": "b", "c": 1}\n')
    outcome = nash("init", "--model", "./bart", "--train", "exact/train.jsonl", *flags)
    assert outcome.code == 2
    assert says in outcome.err
    assert (folder / "taken.toml").read_text() == "precious"
    assert not (folder / "recipe.toml").exists()
