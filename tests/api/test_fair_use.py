"""Priorities, deadlines and the limits of keys, as callers see them."""

import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.api.test_watching import samples
from tests.running_server import RunningServer, publish_tiny_models

LONG = {"max_new_tokens": 200, "min_new_tokens": 200}


def test_priority_and_deadline_change_no_text(client: httpx.Client) -> None:
    texts = []
    for parameters in ({}, {"priority": "batch"}, {"priority": "interactive", "timeout_ms": 60_000}):
        answer = client.post("/generate", json={"inputs": "abc", "parameters": parameters})
        assert answer.status_code == 200
        texts.append(answer.json()["generated_text"])
    assert len(set(texts)) == 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"priority": "urgent"}, "parameters.priority is a text"),
        ({"timeout_ms": 0}, "parameters.timeout_ms is 0"),
        ({"timeout_ms": 1.5}, "parameters.timeout_ms is 1.5"),
    ],
)
def test_other_values_are_refused_by_name(client: httpx.Client, parameters: dict[str, object], message: str) -> None:
    answer = client.post("/generate", json={"inputs": "abc", "parameters": parameters})
    assert answer.status_code == 422
    assert message in answer.json()["error"]


def test_a_callers_deadline_ends_its_request(client: httpx.Client) -> None:
    texts = ["abcdefgh" * 4] * 16
    answer = client.post("/generate", json={"inputs": texts, "parameters": {**LONG, "timeout_ms": 5}})
    assert answer.status_code in (429, 504)
    assert "0.005 s" in answer.json()["error"] or "it may wait" in answer.json()["error"]
    assert client.post("/generate", json={"inputs": "abc"}).status_code == 200


def test_a_small_request_is_answered_before_a_large_one_ends(client: httpx.Client) -> None:
    ended = threading.Event()

    def ask_for_much() -> None:
        body = {"inputs": ["abcdefgh" * 4] * 8, "parameters": {**LONG, "num_beams": 4}}
        assert client.post("/generate", json=body).status_code == 200
        ended.set()

    large = threading.Thread(target=ask_for_much)
    large.start()
    while samples(client)['nash_requests_waiting{model="tiny",variant="dense"}'] == 0 and not ended.is_set():
        pass
    assert not ended.is_set(), "it was over before anything could be seen"
    assert client.post("/generate", json={"inputs": "abc"}).status_code == 200
    assert not ended.is_set()
    large.join(60)


def test_rows_count_not_texts(client: httpx.Client) -> None:
    answer = client.post("/generate", json={"inputs": ["abc"] * 9, "parameters": {"num_beams": 4}})
    assert answer.status_code == 422
    assert "asks for 36 rows" in answer.json()["error"]


def test_a_keys_limits_hold_on_every_route_that_works(tmp_path: Path) -> None:
    lines = {"slow": "rate=0.01 burst=3", "free": "", "narrow": "concurrency=1"}
    keys = tmp_path / "keys"
    keys.write_text("\n".join(f"infer {hashlib.sha256(k.encode()).hexdigest()} {v} {k}" for k, v in lines.items()))
    store = publish_tiny_models(tmp_path)
    with (
        RunningServer("--store", str(store), "--model", "tiny@dense,threads=1", "--api-keys", str(keys)) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):

        def ask(key: str, path: str = "/generate", **body: object) -> httpx.Response:
            return http.post(path, json=body, headers={"authorization": f"Bearer {key}"})

        assert ask("slow", inputs="abc").status_code == 200
        assert ask("slow", inputs=["abc", "abd"]).status_code == 200
        bodies = {"/generate": "inputs", "/v1/completions": "prompt", "/tokenize": "inputs", "/compare": "inputs"}
        for path, field in bodies.items():
            refused = ask("slow", path, **{field: "abc"})
            assert refused.status_code == 429, path
            assert 90 <= int(refused.headers["retry-after"]) <= 100
            assert "0.01 requests a second" in refused.text
            assert "www-authenticate" not in refused.headers
        refused = http.post("/translate", json={"q": "a", "source": "en", "target": "de", "api_key": "slow"})
        assert refused.status_code == 429
        assert http.get("/models", headers={"authorization": "Bearer slow"}).status_code == 200
        assert all(ask("free", inputs="abc").status_code == 200 for _ in range(10))

        host, _, port = server.url.removeprefix("http://").partition(":")
        head = ("POST /generate HTTP/1.1", "host: localhost", "authorization: Bearer narrow", "content-length: 9")
        with socket.create_connection((host, int(port))) as unfinished:
            unfinished.sendall("\r\n".join((*head, "expect: 100-continue", "", "")).encode("ascii"))
            assert b"100 Continue" in unfinished.recv(1000), "its body is awaited"
            refused = ask("narrow", inputs="abc")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        until(200, lambda: ask("narrow", inputs="abc"))
        found = http.get("/metrics", headers={"authorization": "Bearer free"}).text
        counted = re.search(r'nash_rate_limited_total{model="_unknown",variant="_unknown"} (\d+)', found)
        assert counted is not None
        assert int(counted[1]) >= 6
        assert f'nash_requests_total{{model="_unknown",outcome="rejected",variant="_unknown"}} {counted[1]}.0' in found


def until(status: int, ask: Callable[[], httpx.Response]) -> httpx.Response:
    for _ in range(500):
        if (answer := ask()).status_code == status:
            return answer
        time.sleep(0.01)
    raise AssertionError(f"{answer.status_code}: {answer.text}")
