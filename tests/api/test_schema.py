"""Every route against its description: whatever is sent, the answer is one that `/openapi.json` tells of."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api.schema_cases import Cases
from tests.running_server import RunningServer, publish_tiny_models

MODELS = [f"--model=tiny@{name},threads=1,slots=4,max_new_tokens=24" for name in ("dense", "pruned")]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("schema")
    keys = folder / "keys"
    keys.write_text("".join(f"{each} {hashlib.sha256(each.encode()).hexdigest()}\n" for each in ("admin", "infer")))
    store = publish_tiny_models(folder)
    with RunningServer("--store", str(store), *MODELS, "--api-keys", str(keys)) as running:
        yield running


def cases(server: RunningServer, keys: tuple[str | None, ...]) -> Cases:
    return Cases(server.url, httpx.get(f"{server.url}/openapi.json").json(), keys)


def test_a_few_cases_of_each_route(keyed: RunningServer) -> None:
    made = cases(keyed, ("admin", "infer", None, "unknown"))
    made.run(examples=6, start=1)
    statuses = {status for _, status in made.outcomes}
    assert {200, 401, 403, 422} <= statuses
    assert made.sent > 150


@pytest.mark.slow
def test_ten_thousand_cases(keyed: RunningServer, tmp_path: Path) -> None:
    with_keys = cases(keyed, ("admin", "admin", "admin", "infer", None))
    with_keys.run(examples=210, start=2)
    with RunningServer("--store", str(publish_tiny_models(tmp_path)), *MODELS) as unkeyed:
        without = cases(unkeyed, (None,))
        without.run(examples=210, start=3)
    print(f"{with_keys.sent} cases with keys, {without.sent} without")
    assert with_keys.sent + without.sent >= 10_000
