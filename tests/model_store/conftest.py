import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model_store.store import Store
from tests.model_store.second_reader import check_second_reading
from tests.tiny_models import build_compact_t5, build_tiny_t5


@pytest.fixture(scope="session")
def built_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense model; read only."""
    return build_tiny_t5(tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture(scope="session")
def built_compact_t5(built_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compact model of ragged shape with an empty sublayer in each stack; read only."""
    return build_compact_t5(built_t5, tmp_path_factory.mktemp("compact") / "model")


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
