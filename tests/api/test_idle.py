"""Models that are unloaded while nobody asks for them, and loaded again for the next request."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_store.store import Store
from server.frontend.room import PROCESS_BYTES
from tests.running_server import RunningServer, publish_tiny_models

IDLE_S = 1.5
ROOM = 3 * PROCESS_BYTES // 2  # for one tiny model


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(publish_tiny_models(tmp_path_factory.mktemp("idle")))


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[RunningServer]:
    with RunningServer(
        *("--store", str(store.root), "--model", "tiny@dense,threads=1,slots=4"),
        *("--idle-s", str(IDLE_S), "--memory-bytes", str(ROOM), "--restart-s", "0.01"),
    ) as running:
        yield running


def ask(server: RunningServer, model: str = "tiny@dense", **parameters: Any) -> httpx.Response:
    body = {"inputs": "abc", "model": model, "parameters": {"max_new_tokens": 12, **parameters}}
    return httpx.post(f"{server.url}/generate", json=body, timeout=60)


def states(server: RunningServer) -> dict[str, str]:
    return {row["ref"]: row["state"] for row in httpx.get(f"{server.url}/models").json()}


def until_idle(server: RunningServer, ref: str = "tiny@dense") -> None:
    for _ in range(600):
        if states(server)[ref] == "idle":
            return
        time.sleep(0.05)
    raise AssertionError(f"{ref} is still {states(server)[ref]}")


def until_no_worker(server: RunningServer) -> None:
    for _ in range(200):
        if not server.worker_pids():
            return
        time.sleep(0.05)
    raise AssertionError("a worker lives on")


def test_first_requests_share_one_load(server: RunningServer) -> None:
    before = ask(server).json()["generated_text"]
    until_idle(server)
    until_no_worker(server)
    [row] = httpx.get(f"{server.url}/models").json()
    assert row["memory_bytes"] is None
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    refused = ask(server, top_p=0.5, num_beams=9)
    assert (refused.status_code, states(server)) == (422, {"tiny@dense": "idle"}), "what is wrong loads nothing"
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(server), range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6
    assert {answer.json()["generated_text"] for answer in answers} == {before}
    assert len(server.worker_pids()) == 1
    assert states(server) == {"tiny@dense": "ready"}
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'nash_worker_restarts_total{model="tiny",variant="dense"} 0.0' in metrics


@pytest.mark.slow
def test_where_there_is_no_room_it_says_when_there_may_be(server: RunningServer) -> None:
    until_idle(server)
    loaded = httpx.post(f"{server.url}/models?wait=true", json={"model": "tiny@pruned,threads=1"}, timeout=60)
    assert loaded.status_code == 201, "what sleeps takes no room"
    assert ask(server, "tiny@pruned").status_code == 200
    refused = ask(server)
    assert (refused.status_code, refused.json()["error_type"]) == (507, "no_room")
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    until_idle(server, "tiny@pruned")
    assert httpx.delete(f"{server.url}/models/tiny@pruned").status_code == 202


@pytest.mark.slow
def test_what_cannot_be_loaded_again_is_said_and_tried_later(server: RunningServer, store: Store) -> None:
    until_idle(server)
    [weights] = [each for each in store.resolve("tiny@dense").manifest.files if each.path == "model.safetensors"]
    blob = store.root / "blobs/sha256" / weights.sha256[:2] / weights.sha256
    whole = blob.read_bytes()
    _overwrite(blob, whole[:-1] + b"\0")
    refused = ask(server)
    assert (refused.status_code, refused.json()["error_type"]) == (503, "unavailable")
    assert "model.safetensors" in refused.json()["error"]
    assert int(refused.headers["retry-after"]) == 1
    _overwrite(blob, whole)
    time.sleep(0.1)
    assert ask(server).status_code == 200


def _overwrite(blob: Path, content: bytes) -> None:
    blob.chmod(0o644)
    blob.write_bytes(content)
