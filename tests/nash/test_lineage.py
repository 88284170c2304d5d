"""What a manifest says of a run: what it read, and a recipe that looks the same on every machine."""

import os
from pathlib import Path
from typing import Any

import pytest

from nash.lineage import lineage_of, portable
from nash.recipe import PruneRecipe, build_recipe, read_recipe

TRAIN = "hub:abisee/cnn_dailymail@refs/pr/3:3.0.0:train"
PREFIX = "translate English/German: "
RECIPE = f"""
model = "models/dense"
name = "titles"
[data]
train = "{TRAIN}"
validation = "data/validation.jsonl"
prefix = "{PREFIX}"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "deep" / "recipe.toml"
    file.parent.mkdir()
    file.write_text(RECIPE)
    return file


def test_a_recipe_without_folders(file: Path) -> None:
    document = portable(read_recipe(PruneRecipe, file))
    assert document["model"] == "dense"
    data: Any = document["data"]
    assert (data["train"], data["validation"], data["prefix"]) == (TRAIN, "validation.jsonl", PREFIX)


def test_it_is_the_same_from_everywhere(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    here = portable(read_recipe(PruneRecipe, Path("recipe.toml")))
    monkeypatch.chdir(file.parent.parent)
    assert portable(read_recipe(PruneRecipe, Path(os.path.relpath(file)))) == here
    assert portable(read_recipe(PruneRecipe, file)) == here


def test_a_reference_stays_whole() -> None:
    table = {"model": "g2p@dense", "name": "g2p", "data": {"train": "a", "validation": "b"}}
    assert portable(build_recipe(PruneRecipe, table, "here", Path()))["model"] == "g2p@dense"


def test_data_is_what_the_run_has_read(file: Path) -> None:
    """None of the recipe's files is there any more: they are not read again."""
    inputs = {"train": "0" * 64, "validation": "1" * 64, "model": "2" * 64}
    lineage = lineage_of(read_recipe(PruneRecipe, file), inputs["model"], inputs)
    assert lineage.data == {"train": "0" * 64, "validation": "1" * 64}
    assert lineage.parent == "2" * 64
