"""Weights, sessions and shadows over HTTP."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.running_server import RunningServer, publish_tiny_models


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    store = publish_tiny_models(tmp_path_factory.mktemp("traffic"))
    models = ("--model", "tiny@dense,threads=1,slots=4", "--model", "tiny@pruned,threads=1,slots=4")
    with RunningServer("--store", str(store), *models) as running:
        yield running


@pytest.fixture
def http(divided: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=divided.url, timeout=60) as client:
        yield client
        assert client.put("/models/tiny/traffic", json={}).status_code == 200


def variants_of(http: httpx.Client, count: int, model: str | None = "tiny", **headers: str) -> Counter[str]:
    body: dict[str, Any] = {"inputs": "abc", "model": model, "parameters": {"max_new_tokens": 2}}
    answers = [http.post("/generate", json=body, headers=headers).json() for _ in range(count)]
    return Counter(answer["variant"] for answer in answers)


def samples(http: httpx.Client, name: str) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {tuple(sorted(s.labels.values())): s.value for f in families for s in f.samples if s.name == name}


def test_weights_divide_what_names_only_the_model(http: httpx.Client) -> None:
    assert variants_of(http, 5) == {"dense": 5}
    answer = http.put("/models/tiny/traffic", json={"weights": {"dense": 1, "pruned": 1}})
    assert answer.json() == {"model": "tiny", "weights": {"dense": 1, "pruned": 1}, "shadow": None, "seen": None}
    assert http.get("/models/tiny/traffic").json() == answer.json()
    assert set(variants_of(http, 40)) == {"dense", "pruned"}
    for session in ("one", "two", "three"):
        assert len(variants_of(http, 6, **{"x-session-id": session})) == 1
    assert variants_of(http, 6, model="tiny@dense") == {"dense": 6}
    assert variants_of(http, 6, model=None) == {"dense": 6}  # the first --model
    http.put("/models/tiny/traffic", json={"weights": {"pruned": 1}})
    assert variants_of(http, 6) == {"pruned": 6}
    completion = http.post("/v1/completions", json={"prompt": "abc", "model": "tiny"}).json()
    assert completion["model"] == "tiny@pruned"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"weights": {"other": 1}}, "variant 'other' of tiny is not loaded: use one of dense, pruned"),
        ({"weights": {"dense": 0}}, "weights are all 0"),
        ({"weights": {"dense": -1}}, "weights.dense is -1"),
        ({"shadow": {"from": "dense", "to": "dense", "fraction": 1}}, "shadow.to is the variant that answers"),
        ({"shadow": {"from": "dense", "to": "pruned", "fraction": 2}}, "shadow.fraction is 2"),
        ({"shadow": {"from": "dense", "to": "x", "fraction": 1}}, "variant 'x' of tiny is not loaded"),
        ({"shadow": {"from": "dense", "colour": 1}}, "shadow.to is missing"),
        ({"colour": 1}, "colour is not known: leave it out, or use one of weights, shadow"),
    ],
)
def test_what_cannot_be_set(body: dict[str, Any], told: str, http: httpx.Client) -> None:
    answer = http.put("/models/tiny/traffic", json=body)
    assert answer.status_code == 422
    assert told in answer.json()["error"]
    assert http.put("/models/other/traffic", json={}).status_code == 404


def test_shadows_count_by_themselves(http: httpx.Client) -> None:
    http.put("/models/tiny/traffic", json={"shadow": {"from": "dense", "to": "pruned", "fraction": 1.0}})
    before = samples(http, "nash_requests_total")
    texts = ["abc", "de", "fgh", "abcdefgh"]
    body = {"inputs": texts, "model": "tiny@dense", "parameters": {"max_new_tokens": 8}}
    assert http.post("/generate", json=body).status_code == 200
    http.post("/generate", json=body | {"parameters": {"do_sample": True, "temperature": 1.0}})  # not comparable
    http.post("/generate", json=body | {"model": "tiny@pruned"})  # of the other variant
    for _ in range(400):
        seen = http.get("/models/tiny/traffic").json()["seen"]
        if seen["pairs"] == len(texts):
            break
        time.sleep(0.05)
    time.sleep(0.3)
    seen = http.get("/models/tiny/traffic").json()["seen"]
    assert seen["pairs"] == sum(seen["agreement"].values()) == len(texts)
    assert seen["speedup"] > 0
    comparison = [http.post("/compare", json={"inputs": t, "parameters": {"max_new_tokens": 8}}).json() for t in texts]
    exact = sum(each["results"][1]["agreement"]["exact"] for each in comparison)
    assert seen["agreement"]["exact"] == exact
    after = samples(http, "nash_requests_total")
    assert after["dense", "ok", "tiny"] - before["dense", "ok", "tiny"] == 8 + 4  # with the comparisons
    assert after["ok", "pruned", "tiny"] - before["ok", "pruned", "tiny"] == 4 + 4
    counted = samples(http, "nash_shadow_requests_total")
    tried = {key: count for key, count in counted.items() if "pruned" in key}
    assert {name for key in tried for name in key} == {"exact", "close", "different", "pruned", "tiny"}
    assert sum(counted.values()) == sum(tried.values()) >= len(texts)
    assert sum(tried.values()) == samples(http, "nash_shadow_speedup_count")["pruned", "tiny"]


def test_shadows_run_once_the_callers_are_served(http: httpx.Client) -> None:
    body = {"inputs": "abc", "model": "tiny@dense", "parameters": {"max_new_tokens": 200, "min_new_tokens": 199}}
    http.put("/models/tiny/traffic", json={"shadow": {"from": "dense", "to": "pruned", "fraction": 1.0}})
    for _ in range(15):  # each comes while a pair of those before it may run
        assert http.post("/generate", json=body).status_code == 200
    for _ in range(400):
        if http.get("/models/tiny/traffic").json()["seen"]["pairs"] >= 10:
            break
        time.sleep(0.05)
    assert http.get("/models/tiny/traffic").json()["seen"]["pairs"] >= 10
    assert http.get("/models").json()[0]["state"] == "ready"
