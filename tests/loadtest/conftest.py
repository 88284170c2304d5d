from collections.abc import Iterator

import pytest

from tests.running_server import RunningServer, publish_tiny_models


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """`tiny@dense` and `tiny@pruned`, whose answers take a few milliseconds."""
    store = publish_tiny_models(tmp_path_factory.mktemp("under_load"))
    options = "threads=1,slots=8,max_source_tokens=64,max_new_tokens=12"
    models = ["--model", f"tiny@dense,{options}", "--model", f"tiny@pruned,{options}"]
    with RunningServer("--store", str(store), *models) as running:
        yield running
