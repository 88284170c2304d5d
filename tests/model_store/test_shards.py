"""Weights in several files, as large models are saved: read, checked and published as one file is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from model_store.errors import CorruptStoreError, InvalidRequestError
from model_store.model.int4 import origin_metadata
from model_store.model.model import INDEX, Model
from model_store.store import Store
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from tests.tiny_models import build_tiny_t5

SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return build_tiny_t5(tmp_path / "whole")


@pytest.fixture
def sharded(whole: Path, tmp_path: Path) -> Path:
    """The same model as transformers saves it in several files."""
    build_tiny_t5(tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    most = (whole / "model.safetensors").stat().st_size // 3
    T5ForConditionalGeneration.from_pretrained(whole).save_pretrained(tmp_path / "sharded", max_shard_size=most)
    return tmp_path / "sharded"


def answers(folder: Path) -> list[list[int]]:
    engine = Engine.load(Model.open(folder), EngineConfig(threads=1, dtype="float32"))
    return [list(each.tokens) for each in engine.generate([[5, 6, 7, 1], [9, 1]], engine.defaults.resolve({}))]


def test_the_same_tensors_and_answers(whole: Path, sharded: Path, tmp_path: Path) -> None:
    one, several = Model.open(whole), Model.open(sharded)
    assert len(several.weight_files) >= 3
    several.check_weights()
    assert several.tensors.keys() == one.tensors.keys()
    assert (several.parameters, several.tensor_bytes) == (one.parameters, one.tensor_bytes)
    assert several.digest() != one.digest()
    store = Store(tmp_path / "store")
    assert store.publish("t5", sharded).created
    published = store.checkout("t5")
    assert {path.name for path in published.iterdir()} == {path.name for path in sharded.iterdir()}
    assert answers(published) == answers(whole)
    assert store.verify() == []
    # The origin of a calibration is the bytes of all files, one after the other.
    assert origin_metadata(several.weight_files) != origin_metadata(several.weight_files[:1])


def test_a_damaged_shard_is_found(sharded: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    published = store.publish("t5", sharded)
    shard = next(file for file in store.resolve("t5").manifest.files if file.path.startswith("model-00002"))
    blob = tmp_path / "store" / "blobs" / "sha256" / shard.sha256[:2] / shard.sha256
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"\xff")
    [problem] = store.verify(f"t5:{published.version}")
    assert problem.file == shard.path
    with pytest.raises(CorruptStoreError, match=shard.path):
        store.checkout("t5")


def _without_a_shard(folder: Path) -> None:
    next(folder.glob("model-00001-*")).unlink()


def _without_a_map(folder: Path) -> None:
    (folder / INDEX).write_text('{"metadata": {}}')


def _pointing_out(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"shared.weight": "../secret.safetensors"}}))


def _pointing_wrong(folder: Path) -> None:
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    files = list(places.values())
    moved = next(name for name, file in places.items() if files.count(file) > 1)
    other = next(file for file in files if file != places[moved])
    (folder / INDEX).write_text(json.dumps({"weight_map": {**places, moved: other}}))


def _twice(folder: Path) -> None:
    first, *_, last = sorted(folder.glob("model-*.safetensors"))
    save_file({**load_file(last), **load_file(first)}, last)


def _torn(folder: Path) -> None:
    next(folder.glob("model-00001-*")).write_bytes(b"torn")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_a_shard, f"has no model-00001-of-.*, which {INDEX} names: copy"),
        (_without_a_map, "has no weight_map: save the model again"),
        (_pointing_out, "names the file '../secret.safetensors', not model-00001-of-00002"),
        (_pointing_wrong, "has the tensor .*, which it does not: copy"),
        (_twice, "both have the tensor"),
        (_torn, "model-00001-of-.* is not a whole safetensors file"),
    ],
)
def test_a_bad_index_or_shard_is_one_line(
    damage: Callable[[Path], None], message: str, sharded: Path, tmp_path: Path
) -> None:
    damage(sharded)
    with pytest.raises(InvalidRequestError, match=message) as refusal:
        Store(tmp_path / "store").publish("t5", sharded)
    assert "\n" not in str(refusal.value)


def test_shards_without_an_index_or_beside_one_file(sharded: Path, whole: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    save_file({"x": torch.zeros(1)}, whole / SHARD)
    with pytest.raises(InvalidRequestError, match=f"{SHARD} is not part of the model"):
        store.publish("t5", whole)
    (sharded / INDEX).unlink()
    with pytest.raises(InvalidRequestError, match=r"has no model\.safetensors"):
        store.publish("t5", sharded)
