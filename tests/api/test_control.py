"""Models that come, go and are exchanged while a server serves."""

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_store.store import Store
from tests.running_server import RunningServer, is_alive, publish_tiny_models
from tests.tiny_models import build_tiny_t5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, and a second and a third dense model that are not in it yet."""
    folder = tmp_path_factory.mktemp("control")
    publish_tiny_models(folder)
    build_tiny_t5(folder / "second", seed=11)
    build_tiny_t5(folder / "third", seed=12)
    return folder


@pytest.fixture(scope="module")
def controlled(root: Path) -> Iterator[RunningServer]:
    with RunningServer("--store", str(root / "store"), "--model", "tiny@dense,threads=1,slots=4") as running:
        yield running


@pytest.fixture
def http(controlled: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=controlled.url, timeout=120) as client:
        yield client


def text_of(http: httpx.Client, model: str, inputs: str = "abc") -> str:
    answer = http.post("/generate", json={"inputs": inputs, "model": model, "parameters": {"max_new_tokens": 12}})
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["generated_text"]
    return text


def states(http: httpx.Client) -> dict[str, str]:
    return {row["ref"]: row["state"] for row in http.get("/models").json()}


def until_gone(http: httpx.Client, ref: str) -> None:
    for _ in range(600):
        if ref not in states(http):
            return
        time.sleep(0.05)
    raise AssertionError(f"{ref} is still there")


def test_a_model_comes_and_goes(http: httpx.Client, controlled: RunningServer) -> None:
    before = set(controlled.worker_pids())
    answer = http.post("/models", params={"wait": True}, json={"model": "tiny@pruned,threads=1,slots=3"})
    assert (answer.status_code, answer.json()["state"]) == (201, "ready")
    assert states(http) == {"tiny@dense": "ready", "tiny@pruned": "ready"}
    text = text_of(http, "tiny@pruned")
    by_path = http.post("/models/tiny@pruned", json={"inputs": "abc", "parameters": {"max_new_tokens": 12}})
    assert by_path.json()[0]["generated_text"] == text
    assert 'variant="pruned"' in http.get("/metrics").text
    again = http.post("/models", json={"model": "tiny@pruned"})
    assert (again.status_code, again.json()["error_type"]) == (409, "conflict")
    [worker] = set(controlled.worker_pids()) - before
    gone = http.delete("/models/tiny@pruned")
    assert (gone.status_code, gone.json()["state"]) == (202, "draining")
    until_gone(http, "tiny@pruned")
    assert 'variant="pruned"' not in http.get("/metrics").text
    assert not is_alive(worker)
    assert http.post("/generate", json={"inputs": "abc", "model": "tiny@pruned"}).status_code == 404


def test_without_waiting_it_is_seen_loading(http: httpx.Client) -> None:
    answer = http.post("/models", json={"model": "tiny:2,threads=1"})
    assert (answer.status_code, answer.json()["state"]) == (202, "loading")
    early = http.post("/generate", json={"inputs": "abc", "model": "tiny:2"})
    assert early.status_code in (200, 503)
    assert http.get("/health/ready").status_code == 200  # the others serve on
    for _ in range(1200):
        if states(http)["tiny:2"] == "ready":
            break
        time.sleep(0.05)
    assert text_of(http, "tiny:2")
    assert http.delete("/models/tiny:2").status_code == 202
    until_gone(http, "tiny:2")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error_type", "told"),
    [
        ("POST", "/models", {"model": "other"}, 404, "not_found", "'other' is not in the store"),
        ("POST", "/models", {"model": "tiny@other"}, 404, "not_found", "no alias 'other'"),
        ("POST", "/models", {"model": "tiny,colour=red"}, 422, "validation", "'colour=red' is not known"),
        ("POST", "/models", {"model": "tiny:1,threads=1000"}, 422, "validation", "give at most"),
        ("POST", "/models", {"model": "./nothing"}, 422, "validation", "is not a folder"),
        ("POST", "/models", {}, 422, "validation", "model is missing"),
        ("POST", "/models", {"model": "tiny:2,slots=100000000"}, 507, "no_room", "MB are free"),
        ("DELETE", "/models/tiny@other", None, 404, "not_found", "use one of tiny@dense"),
        ("DELETE", "/models/tiny@dense", None, 409, "conflict", "is the only model that is ready"),
        ("POST", "/models/tiny@other/swap", None, 404, "not_found", "use one of tiny@dense"),
        ("POST", "/models/tiny@other", {"inputs": "abc"}, 404, "not_found", "is not loaded"),
        ("POST", "/models/tiny@dense", {"inputs": "abc", "model": "x"}, 422, "validation", "which the path names"),
    ],
)
def test_refusals(
    method: str, path: str, body: Any, status: int, error_type: str, told: str, http: httpx.Client
) -> None:
    answer = http.request(method, path, json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, error_type)
    assert told in answer.json()["error"]
    assert states(http) == {"tiny@dense": "ready"}


def test_a_swap_under_load_fails_no_request(http: httpx.Client, controlled: RunningServer, root: Path) -> None:
    store = Store(root / "store")
    first = store.resolve("tiny@dense").digest
    old_text = text_of(http, "tiny@dense")
    assert http.post("/models/tiny@dense/swap").json() == {"ref": "tiny@dense", "old": first, "new": first}
    store.publish("tiny", root / "second", alias="dense")
    second = store.resolve("tiny@dense").digest
    stop, statuses, texts = threading.Event(), [], set()

    def ask() -> None:
        with httpx.Client(base_url=controlled.url, timeout=120) as client:
            while not stop.is_set():
                answer = client.post("/generate", json={"inputs": "abc", "parameters": {"max_new_tokens": 12}})
                statuses.append(answer.status_code)
                texts.add(answer.json().get("generated_text"))

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        answers = [http.post("/models/tiny@dense/swap").json()]
        store.rollback("tiny", "dense")
        answers.append(http.post("/models/tiny@dense/swap").json())
        store.tag("tiny:3", "dense")
        answers.append(http.post("/models/tiny@dense/swap").json())
        time.sleep(0.5)
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    assert [(each["old"], each["new"]) for each in answers] == [(first, second), (second, first), (first, second)]
    assert set(statuses) == {200}
    new_text = text_of(http, "tiny@dense")
    assert old_text != new_text
    assert texts == {old_text, new_text}
    for _ in range(600):
        if len(controlled.worker_pids()) == len(http.get("/models").json()) == 1:
            break
        time.sleep(0.05)
    assert len(controlled.worker_pids()) == 1
    [row] = http.get("/models").json()
    assert (row["digest"], row["state"]) == (second, "ready")
    assert f'digest="{second}"' in http.get("/metrics").text


def test_a_reload_takes_other_keys_in_the_same_place(http: httpx.Client, controlled: RunningServer) -> None:
    text, before = text_of(http, "tiny@dense"), set(controlled.worker_pids())
    answer = http.post("/models/tiny@dense/reload", json={"keys": "threads=1,slots=3,dtype=float64,backend=torch"})
    assert (answer.status_code, answer.json()["dtype"]) == (200, "float64")
    assert text_of(http, "tiny@dense") == text
    assert not before & set(controlled.worker_pids()) or len(controlled.worker_pids()) == 2
    again = http.post("/models/tiny@dense/reload")
    assert (again.status_code, again.json()["dtype"]) == (200, "float64"), "with the keys it has"
    refused = http.post("/models/tiny@dense/reload", json={"keys": "colour=red"})
    assert (refused.status_code, "'colour=red' is not known" in refused.json()["error"]) == (422, True)
    assert http.post("/models/tiny@dense/reload", json={"keys": "threads=1,slots=4"}).status_code == 200


def test_a_swap_to_what_cannot_be_loaded_leaves_the_old_one(http: httpx.Client, root: Path) -> None:
    store = Store(root / "store")
    before = text_of(http, "tiny@dense")
    good = store.resolve("tiny@dense").version
    store.publish("tiny", root / "third", alias="dense")
    [weights] = [each for each in store.resolve("tiny@dense").manifest.files if each.path == "model.safetensors"]
    blob = store.root / "blobs/sha256" / weights.sha256[:2] / weights.sha256
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"\0")
    answer = http.post("/models/tiny@dense/swap")
    assert (answer.status_code, answer.json()["error_type"]) == (409, "conflict")
    assert "model.safetensors" in answer.json()["error"]
    assert text_of(http, "tiny@dense") == before
    store.tag(f"tiny:{good}", "dense")
    assert http.post("/models/tiny@dense/swap").status_code == 200


def test_aliases_are_followed(root: Path, tmp_path: Path) -> None:
    store = Store(publish_tiny_models(tmp_path))
    with (
        RunningServer("--store", str(store.root), "--model", "tiny@dense,threads=1", "--follow-s", "0.2") as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        before = text_of(http, "tiny@dense")
        store.publish("tiny", root / "second", alias="dense")
        for _ in range(1200):
            if text_of(http, "tiny@dense") != before:
                break
            time.sleep(0.05)
        assert http.get("/models").json()[0]["digest"] == store.resolve("tiny@dense").digest


def test_only_admin_keys_change_anything(tmp_path: Path) -> None:
    store = publish_tiny_models(tmp_path)
    keys = tmp_path / "keys"
    lines = (f"{scope} {hashlib.sha256(scope.encode()).hexdigest()}" for scope in ("infer", "admin"))
    keys.write_text("\n".join(lines))
    changes: list[tuple[str, str, Any]] = [
        ("POST", "/models", {"model": "tiny@pruned,threads=1"}),
        ("POST", "/models/tiny@dense/swap", None),
        ("DELETE", "/models/tiny@pruned", None),
    ]
    with RunningServer("--store", str(store), "--model", "tiny@dense,threads=1", "--api-keys", str(keys)) as server:
        infer = httpx.Client(base_url=server.url, timeout=60, headers={"authorization": "Bearer infer"})
        admin = httpx.Client(base_url=server.url, timeout=60, headers={"authorization": "Bearer admin"})
        with infer, admin:
            assert infer.post("/models/tiny@dense", json={"inputs": "abc"}).status_code == 200
            for method, path, body in changes:
                refused = infer.request(method, path, json=body)
                assert refused.status_code == 403, path
                assert "scope admin" in refused.json()["error"]
                for written in (
                    f"{path}%0A",
                    f"{path}/",
                    path.replace("/models", "//models"),
                    path.replace("m", "%6D"),
                ):
                    assert infer.request(method, written, json=body).status_code in (307, 403, 404, 405, 422), written
                assert [row["ref"] for row in infer.get("/models").json()] == ["tiny@dense"]
                assert httpx.request(method, f"{server.url}{path}", json=body).status_code == 401
            for method, path, body in changes:
                assert admin.request(method, path, params={"wait": True}, json=body).status_code in (200, 201, 202)


def test_what_is_unloaded_while_it_loads_tells_whoever_waits(http: httpx.Client, controlled: RunningServer) -> None:
    answers: list[httpx.Response] = []

    def load() -> None:
        with httpx.Client(base_url=controlled.url, timeout=60) as client:
            answers.append(client.post("/models", params={"wait": True}, json={"model": "tiny@pruned,threads=1"}))

    loader = threading.Thread(target=load)
    loader.start()
    for _ in range(400):
        if "tiny@pruned" in states(http):
            break
        time.sleep(0.01)
    assert http.delete("/models/tiny@pruned").status_code == 202
    loader.join(30)
    assert not loader.is_alive()
    assert (answers[0].status_code, "stopped while it was loading" in answers[0].text) == (409, True)
    until_gone(http, "tiny@pruned")


def test_what_is_loaded_again_while_it_leaves_keeps_its_metrics(http: httpx.Client) -> None:
    request = {"model": "tiny@pruned,threads=1"}
    assert http.post("/models", params={"wait": True}, json=request).status_code == 201
    assert http.delete("/models/tiny@pruned").status_code == 202
    assert http.post("/models", params={"wait": True}, json=request).status_code == 201
    for _ in range(200):
        if [row["state"] for row in http.get("/models").json()] == ["ready", "ready"]:
            break
        time.sleep(0.05)
    assert text_of(http, "tiny@pruned")
    assert 'nash_requests_total{model="tiny",outcome="ok",variant="pruned"}' in http.get("/metrics").text
    assert http.delete("/models/tiny@pruned").status_code == 202
    until_gone(http, "tiny@pruned")
