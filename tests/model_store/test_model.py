"""A model folder, opened: what it says of itself, and what is said where it is none."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from model_store.errors import InvalidRequestError, UnsupportedModelError
from model_store.find import find_model
from model_store.model.config import LAYOUTS
from model_store.model.model import CONFIG, GENERATION, TOKENIZER, WEIGHTS, Model
from model_store.store import Store
from tests.tiny_families import CASES, build_tiny
from tests.tiny_models import build_tiny_t5


@pytest.fixture(scope="module")
def t5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_t5(tmp_path_factory.mktemp("model") / "t5")


def test_a_folder_is_read_once(t5_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(t5_dir, tmp_path / "model"))
    model = Model.open(folder)
    shutil.rmtree(folder)
    assert model.config["model_type"] == "t5"
    assert (model.spec.family, model.pruned) == ("t5", False)
    with pytest.raises(InvalidRequestError, match=r"model has no model\.safetensors: save the model"):
        _ = model.tensors


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"nothing has no config\.json: give the folder of a Hugging Face model"),
        ("{", r"config\.json is not JSON \("),
        ("[" * 100_000, r"config\.json is not JSON \("),
        ("\0", r"config\.json is not JSON \("),
        ("[]", r"config\.json does not hold a JSON object: save the model again"),
        ('{"model_type": "bert"}', r"nothing: model_type 'bert' is not supported"),
        (
            '{"model_type": "t5", "vocab_size": -1}',
            r"nothing: config\.json: vocab_size is -1: it must be",
        ),
    ],
)
def test_what_is_no_model(tmp_path: Path, content: str | None, says: str) -> None:
    folder = tmp_path / "nothing"
    folder.mkdir()
    if content is not None:
        (folder / CONFIG).write_text(content)
    with pytest.raises(InvalidRequestError, match=says) as error:
        Model.open(folder)
    assert isinstance(error.value, UnsupportedModelError) is ("nothing: " in says)


def test_the_older_ones_say_all_in_one_file(t5_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(t5_dir, tmp_path / "model"))
    model = Model.open(folder)
    assert model.generation[0].name == GENERATION
    (folder / GENERATION).unlink()
    assert model.generation == (folder / CONFIG, model.config)


def test_copies_of_the_embedding_are_not_counted(t5_dir: Path) -> None:
    model = Model.open(t5_dir)
    wanted = {name for name, _ in model.layout.shapes()}
    assert len(model.used) == len(wanted & model.tensors.keys())
    assert model.parameters == sum(model.tensors[name].elements for name in wanted)
    assert model.tensor_bytes == 4 * model.parameters


def test_weights_settings_and_tokenizer_make_the_digest(t5_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(t5_dir, tmp_path / "model"))
    seen = {Model.open(folder).digest()}
    (folder / "readme.txt").write_text("nothing that computes")
    assert Model.open(folder).digest() in seen
    for name in (CONFIG, GENERATION, TOKENIZER):
        document = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(document, indent=7))
        seen.add(Model.open(folder).digest())
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"\0")
    seen.add(Model.open(folder).digest())
    assert len(seen) == 5


@pytest.mark.parametrize("name", CASES)
def test_sublayers_and_the_rest_make_up_a_checkpoint(name: str, tmp_path: Path) -> None:
    model = Model.open(build_tiny(CASES[name], tmp_path / "model"))
    layout = model.layout
    assert type(layout) is LAYOUTS[model.spec.facts.layout]
    shapes, of_stacks = dict(layout.shapes()), dict(layout.stack_shapes())
    modules = {name for each in layout.sublayers() for name in (*each.inputs, each.out, each.norm)}
    modules |= {each.bias_table for each in layout.sublayers() if each.bias_table is not None}
    assert {tensor.rpartition(".")[0] for tensor in shapes.keys() - of_stacks.keys()} == modules
    assert layout.stack_tensors <= of_stacks.keys()
    assert layout.counts == {key: model.config[key] for key in layout.counts}


def test_by_a_path_and_by_a_reference(t5_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    store.publish("tiny", t5_dir, alias="dense")
    by_path, by_ref = find_model(str(t5_dir), store), find_model("tiny@dense", store)
    assert (by_path.version, by_path.model.folder) == (None, t5_dir)
    assert by_ref.version is not None
    assert by_ref.version.ref == "tiny:1"
    assert by_ref.model.spec == by_path.model.spec
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequestError, match=r"a folder of that name exists here: write \./other"):
        find_model("other", store)
    with pytest.raises(InvalidRequestError, match=r"^\./nothing is not a folder: give the folder of a model, or NAME"):
        find_model("./nothing", store)


def test_weights_without_a_tensor_are_nobody_s(t5_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(t5_dir, tmp_path / "model"))
    save_file({}, folder / WEIGHTS)
    says = r"model/model\.safetensors has no tensor 'shared\.weight', which config\.json calls for"
    with pytest.raises(InvalidRequestError, match=says):
        Model.open(folder).check_weights()
    with pytest.raises(InvalidRequestError, match=says):  # by its own name, not that of a copy
        Store(tmp_path / "store").publish("tiny", folder)
