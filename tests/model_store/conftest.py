import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model_store.model.config import layout_of, spec_of
from model_store.model.families import compact_model_type
from model_store.model.spec import DecoderLayerSpec, EncoderLayerSpec, ModelSpec
from model_store.store import Store
from tests.model_store.second_reader import check_second_reading
from tests.tiny_models import build_tiny_t5


@pytest.fixture(scope="session")
def built_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense model; read only."""
    return build_tiny_t5(tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture(scope="session")
def built_compact_t5(built_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compact model of ragged shape with an empty sublayer in each stack; read only."""
    directory = tmp_path_factory.mktemp("compact") / "model"
    shutil.copytree(built_t5, directory)
    config = json.loads((built_t5 / "config.json").read_text())
    fields = dict(vars(spec_of(config)))
    fields["encoder"] = (
        EncoderLayerSpec(heads=(0, 2), ffn=10),
        EncoderLayerSpec(heads=(), ffn=64),
        EncoderLayerSpec(heads=(1,), ffn=0),
        EncoderLayerSpec(heads=(0, 1, 2, 3), ffn=1),
    )
    fields["decoder"] = (DecoderLayerSpec(self_heads=(0, 1, 2, 3), cross_heads=(), ffn=64, origin=2),)
    spec = ModelSpec(**fields)
    config |= spec.layer_config() | {"model_type": compact_model_type("t5"), "num_decoder_layers": 1}
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {name: torch.zeros(shape) for name, shape in layout_of(spec).shapes()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture
def model_dir(built_t5: Path, tmp_path: Path) -> Path:
    """A tiny dense model of the test's own, to be changed at will."""
    return Path(shutil.copytree(built_t5, tmp_path / "model"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store of the test's own. Unless the test has damaged it, another reader finds the same in it afterwards."""
    made = Store(tmp_path / "store")
    yield made
    if made.root.is_dir() and made.verify() == []:
        check_second_reading(made)


@pytest.fixture
def edit_config(model_dir: Path) -> Callable[..., None]:
    """Change keys of the model's config.json; None removes one."""

    def edit(**changes: object) -> None:
        path = model_dir / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return edit
