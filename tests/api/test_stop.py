import time
from typing import Any

import httpx
import pytest

from tests.api.streams import events_of
from tests.api.test_watching import grown, samples

LABELS = 'model="tiny",variant="pruned"'


def generate(client: httpx.Client, text: str = "hello", model: str = "tiny@dense", **parameters: Any) -> dict[str, Any]:
    body = {"inputs": text, "model": model, "parameters": {"details": True, **parameters}}
    response = client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.fixture
def whole(client: httpx.Client) -> str:
    """A text long enough to be cut."""
    text = str(generate(client)["generated_text"])
    assert len(text) == 24
    return text


@pytest.mark.parametrize("path", ["/generate", "/", "/generate_stream", "/compare"])
@pytest.mark.parametrize("at", [0, 7, 21])
def test_every_route_cuts_the_text_before_the_stop_string(client: httpx.Client, whole: str, path: str, at: int) -> None:
    stop = whole[at : at + 3]  # three tokens long
    begin = whole.index(stop)
    parameters = {"stop": ["never in it", stop], "details": True}
    response = client.post(path, json={"inputs": "hello", "parameters": parameters})
    document: Any = events_of(response)[-1] if path == "/generate_stream" else response.json()
    if path == "/":
        document = document[0]
    if path == "/compare":
        document = document["results"][0]
        assert document["finish_reason"] == "stop_sequence"
    assert document["generated_text"] == whole[:begin]
    assert document["details"]["finish_reason"] == "stop_sequence"
    assert document["details"]["generated_tokens"] == begin + 3
    timings = document["timings"]
    parts = timings["queue_ms"] + timings["encode_ms"] + timings["decode_ms"]
    assert timings["total_ms"] == pytest.approx(parts, abs=0.01)
    assert 0 < timings["time_to_first_token_ms"] < timings["total_ms"]


def test_a_stream_holds_back_what_may_begin_a_stop_string(client: httpx.Client, whole: str) -> None:
    stop = whole[6:10]
    body = {"inputs": "hello", "parameters": {"stop": [stop, whole[2:4] + "#"], "top_n_tokens": 1}}
    events = events_of(client.post("/generate_stream", json=body))
    begin = whole.index(stop)
    sent = ""
    for event in events:
        sent += event["token"]["text"]
        assert whole[:begin].startswith(sent)
    assert sent == events[-1]["generated_text"] == whole[:begin]
    assert len(events) == begin + 4
    plain = generate(client, **body["parameters"])  # type: ignore[arg-type]
    assert plain["details"]["tokens"] == [event["token"] for event in events]
    assert plain["details"]["top_tokens"] == [event["top_tokens"] for event in events]


def test_a_stop_string_that_does_not_come_changes_nothing(client: httpx.Client, whole: str) -> None:
    for stop in ([], ["#"], [whole + "#"], [whole[5:] + "#"]):
        for path in ("/generate", "/generate_stream"):
            response = client.post(path, json={"inputs": "hello", "parameters": {"stop": stop, "details": True}})
            document = events_of(response)[-1] if path == "/generate_stream" else response.json()
            assert document["generated_text"] == whole
            assert document["details"]["finish_reason"] == "length"


def test_beams_and_samples_are_cut_once_they_are_decided(client: httpx.Client) -> None:
    for parameters in ({"num_beams": 3}, {"do_sample": True, "seed": 5}):
        several: dict[str, Any] = {**parameters, "num_return_sequences": 3, "min_new_tokens": 10}
        before = generate(client, **several)
        stop = before["generated_text"][4:6]
        after = generate(client, **several, stop=[stop])
        cut = [each["generated_text"].split(stop)[0] for each in before["sequences"]]
        assert [each["generated_text"] for each in after["sequences"]] == cut
        assert after["details"]["finish_reason"] == "stop_sequence"
        tokens = after["details"]["tokens"]
        assert "".join(token["text"] for token in tokens) == cut[0]
        assert after["details"]["generated_tokens"] == len(tokens) < len(before["details"]["tokens"])


def test_a_stopped_generation_frees_its_slot_and_counts_as_ok(client: httpx.Client) -> None:
    text = "b" * 60
    whole = generate(client, text, "tiny@pruned", max_new_tokens=200)["generated_text"]
    before = samples(client)
    stop = whole[2:5]
    made = whole.index(stop) + 3
    body = {"inputs": [text] * 16, "model": "tiny@pruned", "parameters": {"max_new_tokens": 200, "stop": [stop]}}
    response = client.post("/generate", json=body)
    assert [answer["generated_text"] for answer in response.json()] == [whole[: made - 3]] * 16
    assert response.headers["x-generated-tokens"] == str(16 * made)
    for _ in range(100):
        after = samples(client)
        generated = grown(before, after, f'nash_tokens_total{{direction="generated",{LABELS}}}')
        if after[f"nash_requests_running{{{LABELS}}}"] == 0 and generated >= 16 * made:  # reports come a little later
            break
        time.sleep(0.02)
    assert after[f"nash_requests_running{{{LABELS}}}"] == 0
    assert grown(before, after, 'nash_requests_total{model="tiny",outcome="ok",variant="pruned"}') == 16
    assert grown(before, after, f"nash_generated_tokens_sum{{{LABELS}}}") == 16 * made
    generated = grown(before, after, f'nash_tokens_total{{direction="generated",{LABELS}}}')
    assert 16 * made <= generated < 16 * 200 / 2
