"""`nash export`: what it writes loads without us, computes the same, and is whole or not there."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from model_store.model.config import layout_of
from model_store.model.model import Model
from model_store.model.spec import shortened
from model_store.store import Store
from model_store.version.source import check_publishable
from nash.modeling.export import stock_shape
from nash.modeling.folders import save_model
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from tests.engine.family_reference import texts
from tests.nash.command_line import PROGRAM, nash
from tests.nash.pruned_families import FAMILIES, Pruned, assert_same, batch, build, decided, logits, read

KEPT_LAYERS = (1,)


def prune(dense_dir: Path, folder: Path) -> Path:
    """A compact model with one decoder layer, half of every part, and two sublayers gone."""
    spec = Model.open(dense_dir).spec
    kept = {}
    for i, sublayer in enumerate(layout_of(shortened(spec, KEPT_LAYERS)).sublayers()):
        kept[sublayer.out] = [i not in (1, 4) and part % 2 == 1 for part in range(sublayer.parts)]
    pruned = Pruned(dense_dir=dense_dir, kept_layers=KEPT_LAYERS, hardened=decided(spec, KEPT_LAYERS, kept, 0))
    save_model(pruned.compact(), dense_dir, folder, torch.float32)
    return folder


@pytest.fixture(scope="module")
def dense_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(FAMILIES["bart"], tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture(scope="module")
def compact_dir(dense_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prune(dense_dir, tmp_path_factory.mktemp("compact") / "model")


@pytest.fixture(scope="module")
def store(dense_dir: Path, compact_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store(tmp_path_factory.mktemp("store"))
    store.publish("m", dense_dir, alias="dense")
    store.publish("m", compact_dir, alias="pruned")
    return store.root


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


ALONE = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForSeq2SeqLM
for folder in map(Path, sys.argv[1:]):
    feed = {k: torch.tensor(v) for k, v in json.loads((folder / "feed.json").read_text()).items()}
    with torch.no_grad():
        scores = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()(**feed).logits
    (folder / "scores.json").write_text(json.dumps(scores.tolist()))
print([name for name in sys.modules if name.split(".")[0] in ("nash", "server", "model_store")])
"""


@pytest.mark.parametrize(
    "families",
    [
        ("t5 v1.1", "mt5", "umt5", "bart", "marian, two vocabularies"),
        pytest.param(tuple(FAMILIES), marks=pytest.mark.slow),
    ],
)
def test_stock_transformers_alone_loads_the_export(families: tuple[str, ...], tmp_path: Path) -> None:
    expected = {}
    for name in families:
        compact_dir = prune(build(FAMILIES[name], tmp_path / name / "teacher"), tmp_path / name / "compact")
        dense_dir = tmp_path / name / "dense"
        assert nash("export", compact_dir, "--format", "hf-dense", "--out", dense_dir).code == 0
        spec = Model.open(compact_dir).spec
        feed = batch(spec) | {"decoder_input_ids": batch(spec)["input_ids"][:, :5]}
        (dense_dir / "feed.json").write_text(json.dumps({key: tensor.tolist() for key, tensor in feed.items()}))
        with torch.no_grad():
            expected[dense_dir] = AutoModelForSeq2SeqLM.from_pretrained(compact_dir).eval()(**feed).logits
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, *map(str, expected)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", "the loader had help"
    for folder, scores in expected.items():
        assert_same(torch.tensor(json.loads((folder / "scores.json").read_text())), scores, folder.parent.name)


def test_a_stock_checkpoint_is_the_dense_models_shape(compact_dir: Path, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "dense"
    document = nash("export", "m@pruned", "--format", "hf-dense", "--out", out, "--store", store, "--json").document()
    assert document == {"path": str(out)}
    compact, stock = Model.open(compact_dir).spec, Model.open(out).spec
    assert not stock.compact
    assert dict(layout_of(stock).shapes()) == dict(layout_of(stock_shape(compact)).shapes())
    assert (len(stock.encoder), len(stock.decoder)) == (3, 1)
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["BartForConditionalGeneration"]
    assert not [key for key in config if key.startswith(("compact_", "dense_"))]
    check_publishable(out)
    rest = {name: content for name, content in files(compact_dir).items() if name.endswith("json")}
    assert {name: files(out)[name] for name in rest if name != "config.json"} == {
        name: content for name, content in rest.items() if name != "config.json"
    }


def test_a_trimmed_vocabulary_is_the_stock_models_own(compact_dir: Path, tmp_path: Path) -> None:
    """It has as many tokens as it has, and does not know of more."""
    shutil.copytree(compact_dir, tmp_path / "trimmed")
    config = json.loads((compact_dir / "config.json").read_text())
    (tmp_path / "trimmed" / "config.json").write_text(json.dumps(config | {"dense_vocab_size": 1000}))
    assert Model.open(tmp_path / "trimmed").spec.dense_vocab_size == 1000
    assert nash("export", tmp_path / "trimmed", "--format", "hf-dense", "--out", tmp_path / "dense").code == 0
    assert not Model.open(tmp_path / "dense").spec.compact


def test_the_engine_answers_alike(compact_dir: Path, tmp_path: Path) -> None:
    assert nash("export", compact_dir, "--format", "hf-dense", "--out", tmp_path / "dense").code == 0
    config = EngineConfig(slots=2, max_source_tokens=16, max_new_tokens=8)
    sources = texts(Model.open(compact_dir).spec, [3, 9])
    parameters = GenerationParameters(max_new_tokens=8)
    ours, theirs = (
        [sequence.tokens for sequence in Engine.load(Model.open(folder), config).generate(sources, parameters)]
        for folder in (compact_dir, tmp_path / "dense")
    )
    assert ours == theirs


def test_as_it_is(store: Path, compact_dir: Path, dense_dir: Path, tmp_path: Path) -> None:
    """The same bytes beside a card; and a dense model is a stock checkpoint already."""
    cases = (("pruned", "hf", compact_dir), ("dense", "hf", dense_dir), ("dense", "hf-dense", dense_dir))
    for ref, form, source in cases:
        out = tmp_path / f"{ref} {form}"
        outcome = nash("export", f"m@{ref}", "--format", form, "--out", out, "--store", store)
        assert (outcome.code, outcome.err) == (0, "")
        assert str(out) in outcome.out
        card = (out / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\n")
        (out / "README.md").unlink()
        assert files(out) == files(source)
        (out / "config.json").write_text("{}")  # a copy, not a window into the store
    assert nash("models", "verify", "--store", store).code == 0


def test_half_precision_stays(dense_dir: Path, tmp_path: Path) -> None:
    compact_dir = prune(dense_dir, tmp_path / "compact")
    save_model(AutoModelForSeq2SeqLM.from_pretrained(compact_dir), dense_dir, tmp_path / "half", torch.bfloat16)
    assert nash("export", tmp_path / "half", "--format", "hf-dense", "--out", tmp_path / "dense").code == 0
    assert {t.dtype for t in load_file(tmp_path / "dense" / "model.safetensors").values()} == {torch.bfloat16}
    spec = Model.open(compact_dir).spec
    half, dense = (logits(read(tmp_path / name), spec) for name in ("half", "dense"))
    assert_same(dense, half)


def test_a_used_folder_is_left_alone(compact_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("used", "file", "link", "dangling"):
        outcome = nash("export", compact_dir, "--out", tmp_path / name)
        assert outcome.code == 2
        assert f"{tmp_path / name} already exists" in outcome.err
    assert files(tmp_path / "used") == {"mine": b"precious"}
    assert nash("export", compact_dir, "--out", tmp_path / "empty").code == 0
    assert files(tmp_path / "empty") == files(compact_dir)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "empty", "file", "link", "used"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["absent@pruned"], 2, "absent"),
        (["./absent"], 2, "is not a folder"),
        (["."], 2, "has no config.json"),
        (["m@pruned", "--format", "onnx"], 2, "onnx"),
    ],
)
def test_what_cannot_be_exported(
    arguments: list[str], code: int, says: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = nash("export", *arguments, "--out", tmp_path / "out", "--store", store)
    assert outcome.code == code
    assert says in outcome.err
    assert not list(tmp_path.iterdir())


def test_torn_weights_are_not_copied(dense_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(dense_dir, tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    outcome = nash("export", f"{tmp_path / 'torn'}/", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "model.safetensors" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["torn"]


KILLED = f"""
import os, signal
import nash.modeling.export
from pathlib import Path
def half(tensors, path, metadata):
    Path(path).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
nash.modeling.export.save_file = half
{PROGRAM}
"""


def test_killed_half_way_it_leaves_nothing_that_looks_whole(compact_dir: Path, tmp_path: Path) -> None:
    arguments = ["export", str(compact_dir), "--format", "hf-dense", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "out").exists()
    assert all(path.name.startswith(".out.") and path.name.endswith(".partial") for path in tmp_path.iterdir())
    assert nash(*arguments).code == 0
    assert not Model.open(tmp_path / "out").spec.compact


def test_a_failure_leaves_nothing(compact_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr("nash.modeling.export.save_file", full)
    outcome = nash("export", compact_dir, "--format", "hf-dense", "--out", tmp_path / "out")
    assert outcome.code == 1
    assert "No space left on device" in outcome.err
    assert not list(tmp_path.iterdir())
