from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.tiny_models import build_tiny_t5

# Tied, relu; head widths that are not d_model / heads, once of whole registers; T5 v1.1; gated but tied.
SHAPES: dict[str, Callable[[Path], Path]] = {
    "t5": build_tiny_t5,
    "wide heads": partial(build_tiny_t5, head_dim=24),
    "heads of registers": partial(build_tiny_t5, head_dim=32, seed=5),
    "v1.1": partial(build_tiny_t5, gated=True, tied=False, head_dim=4),
    "gated, tied": partial(build_tiny_t5, gated=True, seed=3),
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The models are tiny: a second thread would only wait."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=SHAPES)
def dense_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense model of each shape; read only."""
    return SHAPES[request.param](tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture(scope="session")
def t5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny dense model; read only."""
    return build_tiny_t5(tmp_path_factory.mktemp("t5") / "model")
