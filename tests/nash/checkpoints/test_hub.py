"""Models by their names on the hub, from a local cache with its real layout: no network is needed."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from model_store.model.model import Model
from model_store.store import Store
from nash.checkpoints.folder import locate
from nash.checkpoints.opening import open_model
from nash.errors import RequestError
from nash.recipes.recipe import PruneRecipe, read_recipe
from nash.run.lineage import portable
from tests.nash.command_line import nash
from tests.nash.saved_checkpoints import build_checkpoint

COMMIT, OLD = "0123456789abcdef0123456789abcdef01234567", "f" * 40


def cache(folder: Path, model: Path, commit: str, *references: str) -> Path:
    """Put a model into a hub cache as owner/tiny: blobs, and a snapshot of links to them."""
    repository = folder / "models--owner--tiny"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    for number, file in enumerate(sorted(model.iterdir())):
        blob = repository / "blobs" / f"{commit[:8]}{number}"
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    (repository / "refs").mkdir(exist_ok=True)
    for reference in references:
        (repository / "refs" / reference).write_text(commit)
    return snapshot


@pytest.fixture(scope="module")
def byt5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint("byt5", tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def hub(byt5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two commits of owner/tiny; the newer one has no generation settings, as older models on the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cache(tmp_path / "hub", byt5, OLD, "v1")
    snapshot = cache(tmp_path / "hub", byt5, COMMIT, "main")
    (snapshot / "generation_config.json").unlink()
    (snapshot / "pytorch_model.bin").write_bytes(b"\x80\x04 never read")
    return tmp_path / "hub"


def test_a_name_is_completed_without_touching_the_cache(hub: Path, byt5: Path, tmp_path: Path) -> None:
    before = sorted(hub.rglob("*"))
    store = Store(tmp_path / "store")
    with open_model("hub:owner/tiny", store) as found:
        assert (found.ref, found.origin, found.version) == ("hub:owner/tiny", f"hub:owner/tiny@{COMMIT}", None)
        names = {path.name for path in found.model.folder.iterdir()}
        assert names == {*(path.name for path in byt5.iterdir()), "tokenizer.json"}
        assert not any(path.is_symlink() for path in found.model.folder.iterdir())
        assert found.model.folder.name == "tiny"
    assert not found.model.folder.exists()
    assert sorted(hub.rglob("*")) == before
    assert locate("hub:owner/tiny@v1", store).origin == f"hub:owner/tiny@{OLD}"
    assert locate(f"hub:owner/tiny@{COMMIT}", store).origin == f"hub:owner/tiny@{COMMIT}"


@pytest.mark.usefixtures("hub")
def test_the_lineage_names_the_commit(tmp_path: Path) -> None:
    done = nash("models", "publish", "tiny", "hub:owner/tiny", "--alias", "dense", "--store", tmp_path / "s", "--json")
    assert done.document()["created"]
    store = Store(tmp_path / "s")
    assert store.resolve("tiny@dense").manifest.lineage.trained_from == f"hub:owner/tiny@{COMMIT}"
    assert Model.open(store.checkout("tiny@dense")).spec.family == "t5"


def test_a_recipe_may_name_one(tmp_path: Path) -> None:
    recipe = tmp_path / "prune.toml"
    recipe.write_text(
        'model = "hub:owner/tiny@v1"\nname = "t"\n[data]\ntrain = "a.jsonl"\nvalidation = "a.jsonl"\n'
        "[pruning]\ndecoder_layers = 1\nencoder_sparsity = 0.1\n"
    )
    read = read_recipe(PruneRecipe, recipe)
    assert read.model == portable(read)["model"] == "hub:owner/tiny@v1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hub:owner/absent", "hub:owner/absent is neither on the hub nor in its local cache .* check the name"),
        ("hub:owner/tiny@never", "hub:owner/tiny@never is neither on the hub nor in its local cache"),
        ("hub:a/b/c", "hub:a/b/c does not name a model on the hub: write hub:OWNER/NAME"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_a_name_that_cannot_be_found_is_one_line(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message) as refusal:
        locate(name, Store(tmp_path / "store"))
    assert "\n" not in str(refusal.value)
    outcome = nash("evaluate", name, "--data", __file__, "--store", tmp_path / "store")
    assert outcome.code == 2


def test_pickles_are_not_opened(hub: Path, tmp_path: Path) -> None:
    next(hub.glob(f"*/snapshots/{COMMIT}/model.safetensors")).unlink()
    with pytest.raises(RequestError, match=r"hub:owner/tiny cannot be used: .* has no model\.safetensors.*pickles"):
        locate("hub:owner/tiny", Store(tmp_path / "store"))
