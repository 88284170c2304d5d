import json
import socket
import time

import httpx
import pytest

from tests.api.streams import events_of
from tests.running_server import RunningServer


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
def test_a_stream_says_the_same_as_a_plain_answer(client: httpx.Client, path: str) -> None:
    body = {"inputs": "hello world", "parameters": {"max_new_tokens": 12, "details": True}}
    plain = client.post("/generate", json=body).json()
    response = client.post(path, json={**body, "stream": True})
    events = events_of(response)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-accel-buffering"] == "no"
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert "".join(event["token"]["text"] for event in events) == plain["generated_text"]
    assert [event["token"]["id"] for event in events] == [token["id"] for token in plain["details"]["tokens"]]
    *before, last = events
    assert all(event["generated_text"] is None and event["details"] is None for event in before)
    assert last["generated_text"] == plain["generated_text"]
    assert last["details"]["generated_tokens"] == len(events)
    assert last["ref"] == "tiny@dense"
    assert last["timings"]["total_ms"] > 0


def test_an_error_before_the_first_event_is_a_plain_error(client: httpx.Client) -> None:
    response = client.post("/generate_stream", json={"inputs": ""})
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"


def test_a_list_cannot_stream(client: httpx.Client) -> None:
    response = client.post("/generate_stream", json={"inputs": ["a", "b"]})
    assert response.status_code == 422
    assert "inputs is a list, which cannot stream" in response.json()["error"]


def gauge(client: httpx.Client, name: str) -> float:
    line = next(line for line in client.get("/metrics").text.splitlines() if line.startswith(name))
    return float(line.rsplit(" ", 1)[1])


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(client: httpx.Client, server: RunningServer, stream: bool) -> None:
    cancelled = 'nash_requests_total{model="tiny",outcome="cancelled",variant="pruned"}'
    before = gauge(client, cancelled)
    # "b" makes the model run to its limit, which takes long enough to go away in between.
    body = json.dumps(
        {"inputs": "b" * 60, "model": "tiny@pruned", "parameters": {"max_new_tokens": 200}, "stream": stream}
    )
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(20):
        connection = socket.create_connection((host, int(port)))
        head = f"POST /generate HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        if stream:
            assert connection.recv(10).startswith(b"HTTP/1.1 2")
        connection.close()
        time.sleep(0.05)
        if gauge(client, cancelled) > before:
            break
    else:
        raise AssertionError("no request was cancelled")
    for _ in range(200):
        if gauge(client, 'nash_requests_running{model="tiny",variant="pruned"}') == 0:
            return
        time.sleep(0.05)
    raise AssertionError("a slot stayed taken")
