"""Answers that are given again: to whom, what they say, and that they are the same."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.streams import events_of
from tests.running_server import RunningServer, publish_tiny_models

FRESH = {"cache-control": "no-cache"}
SOURCES = ("--source-cache-bytes", "1000000")


@pytest.fixture(scope="module")
def caching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    store = publish_tiny_models(tmp_path_factory.mktemp("cache"))
    models = [f"--model=tiny@{name},threads=1,slots=4,max_new_tokens=200" for name in ("dense", "pruned")]
    with RunningServer("--store", str(store), *models, "--cache-bytes", "200000", *SOURCES) as running:
        yield running


@pytest.fixture
def http(caching: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=caching.url, timeout=60) as client:
        yield client


def ask(http: httpx.Client, inputs: Any, headers: dict[str, str] | None = None, **parameters: Any) -> Any:
    body = {"inputs": inputs, "model": "tiny@dense", "parameters": {"max_new_tokens": 12, **parameters}}
    answer = http.post("/generate", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def looked_up(http: httpx.Client, kind: str = "answer") -> dict[str, float]:
    families = text_string_to_metric_families(http.get("/metrics").text)
    samples = [s for f in families for s in f.samples if s.name == "nash_cache_requests_total"]
    asked = ("dense", kind)
    return {s.labels["outcome"]: s.value for s in samples if (s.labels["variant"], s.labels["kind"]) == asked}


def without_times(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in ("timings", "cached")}


def test_an_equal_request_gets_the_same_again(http: httpx.Client) -> None:
    before = looked_up(http)
    first, second = ask(http, "abc", details=True, top_n_tokens=2), ask(http, "abc", details=True, top_n_tokens=2)
    assert "cached" not in first
    assert second["cached"]
    assert without_times(first) == without_times(second)
    assert second["timings"]["decode_ms"] == 0
    assert second["timings"]["total_ms"] < 50
    after = looked_up(http)
    assert after["hit"] - before.get("hit", 0) == 1
    assert after["miss"] - before.get("miss", 0) == 1
    count = [line for line in http.get("/metrics").text.splitlines() if "duration_seconds_count" in line]
    answered = sum(float(line.rsplit(" ", 1)[1]) for line in count if 'variant="dense"' in line)
    assert answered == sum(value for outcome, value in after.items() if outcome == "miss")  # reuse fakes no speed


def test_anything_else_is_another_request(http: httpx.Client) -> None:
    ask(http, "xyz")
    assert "cached" not in ask(http, "xy")
    assert "cached" not in ask(http, "xyz", max_new_tokens=11)
    assert "cached" not in ask(http, "xyz", details=True)
    assert "cached" not in ask(http, "xyz", stop=["q"])
    body = {"inputs": "xyz", "model": "tiny@pruned", "parameters": {"max_new_tokens": 12}}
    assert "cached" not in http.post("/generate", json=body).json()
    assert "cached" not in ask(http, "xyz", headers=FRESH)
    assert ask(http, "xyz")["cached"]


def test_what_is_drawn_is_drawn_anew_unless_the_seed_is_given(http: httpx.Client) -> None:
    drawn = [ask(http, "abc", temperature=2.0, details=True) for _ in range(3)]
    assert not any("cached" in each for each in drawn)
    assert len({each["details"]["seed"] for each in drawn}) == 3
    seeded = [ask(http, "abc", temperature=2.0, seed=5) for _ in range(2)]
    assert [each.get("cached") for each in seeded] == [None, True]


def test_streams_beams_lists_and_stops(http: httpx.Client) -> None:
    body = {"inputs": "fgh", "model": "tiny@dense", "parameters": {"max_new_tokens": 12}}
    streams = [events_of(http.post("/generate_stream", json=body)) for _ in range(2)]
    assert [event["token"] for event in streams[0]] == [event["token"] for event in streams[1]]
    assert streams[1][-1]["cached"]
    assert without_times(streams[0][-1]) == without_times(streams[1][-1])
    beams = [ask(http, "fgh", num_beams=3, num_return_sequences=2) for _ in range(2)]
    assert without_times(beams[0]) == without_times(beams[1])
    several = ask(http, ["fgh", "new", "fgh"], num_beams=3, num_return_sequences=2)
    assert [each.get("cached") for each in several] == [True, None, True]
    text = ask(http, "abc")["generated_text"]
    stopped = [ask(http, "abc", stop=[text[3]]) for _ in range(2)]
    assert stopped[1]["cached"]
    assert stopped[0]["generated_text"] == stopped[1]["generated_text"] == text[: text.index(text[3])]
    told = [ask(http, "abc", stop=[text[3]], details=True) for _ in range(2)]
    assert without_times(told[0]) == without_times(told[1])


def test_equal_requests_at_one_moment_are_computed_once(http: httpx.Client, caching: RunningServer) -> None:
    before, answers = looked_up(http), []

    def send() -> None:
        with httpx.Client(base_url=caching.url, timeout=60) as client:
            answers.append(ask(client, "together", max_new_tokens=200, min_new_tokens=199))

    senders = [threading.Thread(target=send) for _ in range(6)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert len({answer["generated_text"] for answer in answers}) == 1
    after = looked_up(http)
    assert after["miss"] - before.get("miss", 0) == 1
    assert sum(after.values()) - sum(before.values()) == 6


def test_who_leaves_takes_nobody_with_it(http: httpx.Client, caching: RunningServer) -> None:
    parameters: dict[str, Any] = {"max_new_tokens": 200, "min_new_tokens": 199}
    with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=caching.url, timeout=0.03) as hasty:
        ask(hasty, "leaving", **parameters)
    assert (
        ask(http, "leaving", **parameters)["generated_text"]
        == ask(http, "leaving", FRESH, **parameters)["generated_text"]
    )


def test_who_waits_for_a_stream_that_dies_is_answered(http: httpx.Client, caching: RunningServer) -> None:
    body = {
        "inputs": "dying",
        "model": "tiny@dense",
        "parameters": {"max_new_tokens": 200, "min_new_tokens": 199},
    }
    seen: dict[str, str] = {}

    def wait() -> None:
        with httpx.Client(base_url=caching.url, timeout=60) as client:
            seen["joined"] = client.post("/generate_stream", json=body).text

    before = looked_up(http)
    with http.stream("POST", "/generate_stream", json=body) as first:
        lines = first.iter_lines()
        next(lines)
        for pid in caching.worker_pids():
            os.kill(pid, signal.SIGSTOP)  # so that there is time to join
        joiner = threading.Thread(target=wait)
        joiner.start()
        for _ in range(400):
            if looked_up(http).get("joined", 0) > before.get("joined", 0):
                break
            time.sleep(0.02)
        for pid in caching.worker_pids():
            os.kill(pid, signal.SIGKILL)
        assert "send the request again" in list(lines)[-2]
    joiner.join(60)
    assert '"generated_text":"' in seen["joined"]
    assert "error" not in seen["joined"]


def test_it_is_bounded(http: httpx.Client) -> None:
    ask(http, "oldest")
    for number in range(120):
        ask(http, ["a" * (1 + number % 20) + "b" * (number // 20)])
    assert "cached" not in ask(http, "oldest")


def test_the_same_text_with_other_parameters_is_encoded_once(http: httpx.Client) -> None:
    before = looked_up(http, "source")
    for most in (5, 6, 7):
        ask(http, "encoded once", max_new_tokens=most)
    beams = ask(http, "encoded once", num_beams=3)
    fresh = ask(http, "encoded once", FRESH, num_beams=3)
    assert without_times(beams) == without_times(fresh)
    http.post("/compare", json={"inputs": "encoded once", "parameters": {"max_new_tokens": 3}})
    for _ in range(100):
        after = looked_up(http, "source")
        if sum(after.values()) >= sum(before.values()) + 4:
            break
        time.sleep(0.05)
    assert after["miss"] - before.get("miss", 0) == 1
    assert after["hit"] - before.get("hit", 0) == 3, "neither a comparison nor who asks for a fresh answer gets it"


@pytest.mark.slow
def test_ten_thousand_answers_are_the_same_bits(http: httpx.Client) -> None:
    chance = random.Random(3)
    for _ in range(5000):
        text = "".join(chance.choices("abcdefgh", k=chance.randint(1, 6)))
        parameters: dict[str, Any] = {"details": True, "max_new_tokens": chance.randint(1, 8)}
        if chance.random() < 0.3:
            parameters["num_beams"] = chance.randint(2, 4)
        first, again = ask(http, text, **parameters), ask(http, text, **parameters)
        fresh = ask(http, text, FRESH, **parameters)
        assert again["cached"]
        assert without_times(first) == without_times(again) == without_times(fresh)
