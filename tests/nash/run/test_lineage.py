"""What a manifest says of a run: what it read, and a recipe that looks the same on every machine."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from model_store.find import FoundModel
from model_store.model.model import Model
from nash.recipes.recipe import DataRecipe, PruneRecipe, build_recipe, read_recipe
from nash.run.lineage import input_digests, lineage_of, portable

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


def test_a_run_notices_another_tokenizer_or_other_settings_of_a_model(dense_dir: Path, tmp_path: Path) -> None:
    """Recipes name folders by their last part alone: what lies in them tells them apart."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"source": "a", "target": "b"}\n')
    data = DataRecipe(train=rows, validation=rows)
    folder = Path(shutil.copytree(dense_dir, tmp_path / "dense"))
    model = FoundModel(ref="dense", model=Model.open(folder), version=None)
    before = input_digests(data, model), input_digests(data, None, folder)
    assert (input_digests(data, model), input_digests(data, None, folder)) == before
    for name, changes in (("generation_config.json", (True, False)), ("tokenizer.json", (True, True))):
        (folder / name).write_text((folder / name).read_text() + "\n")
        after = input_digests(data, model), input_digests(data, None, folder)
        assert tuple(new != old for new, old in zip(after, before, strict=True)) == changes
        before = after


def test_data_is_what_the_run_has_read(file: Path) -> None:
    """None of the recipe's files is there any more: they are not read again."""
    inputs = {"train": "0" * 64, "validation": "1" * 64, "model": "2" * 64}
    lineage = lineage_of(read_recipe(PruneRecipe, file), inputs["model"], inputs, {"final_training": "float32"})
    assert lineage.data == {"train": "0" * 64, "validation": "1" * 64}
    assert lineage.parent == "2" * 64
