from pathlib import Path

import pytest
import torch
import transformers

from tests.tiny_models import build_tiny_t5


@pytest.fixture(autouse=True, scope="session")
def _quiet_and_single() -> None:
    """The models are tiny: a second thread would only wait, and progress bars would hide what matters."""
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def dense_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense T5, smaller than tiny, with heads that do not fill d_model; read only."""
    directory = tmp_path_factory.mktemp("dense") / "model"
    return build_tiny_t5(directory, d_model=16, heads=3, head_dim=4, d_ff=24, encoder_layers=3)
