from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_store.model.model import Model
from server.engine.interface.config import EngineConfig
from server.engine.sequence import Sequence
from tests.running_server import RunningServer, publish_tiny_models

Direct = Callable[..., Sequence]  # (text, **engine parameters): what the engine makes of it


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for all tests of this folder, with small limits so that they can be reached."""
    store = publish_tiny_models(tmp_path_factory.mktemp("served"))
    options = "threads=1,slots=4,max_new_tokens=200,max_source_tokens="
    with RunningServer(
        "--store", str(store), "--model", f"tiny@dense,{options}64", "--model", f"tiny@pruned,{options}62",
        "--max-body-bytes", "20000", "--max-batch-items", "16", "--max-queue", "28", "--keep-alive-s", "0.05",
    ) as running:  # fmt: skip
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


@pytest.fixture(scope="session")
def tiny_dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of `tiny@dense`, for oracles."""
    from tests.tiny_models import build_tiny_t5

    return build_tiny_t5(tmp_path_factory.mktemp("oracle"), seed=0)


@pytest.fixture(scope="session")
def direct(tiny_dense: Path) -> Direct:
    """`tiny@dense` without a server."""
    from server.engine.engine import Engine
    from tests.tiny_models import build_tokenizer

    engine = Engine.load(
        Model.open(tiny_dense), EngineConfig(threads=1, slots=4, max_source_tokens=64, max_new_tokens=200)
    )
    tokenizer = build_tokenizer()

    def generate(text: str, **given: Any) -> Sequence:
        (sequence,) = engine.generate([tokenizer.encode(text).ids], engine.defaults.resolve(given))
        return sequence

    return generate
