import json
from typing import Any

import httpx
import pytest

from tests.api.streams import events_of

BODY: dict[str, Any] = {"inputs": "hello world", "parameters": {"max_new_tokens": 10}}


def test_both_variants_answer_as_they_do_alone(client: httpx.Client) -> None:
    document = client.post("/compare", json=BODY).json()
    assert document["baseline"] == "tiny@dense"
    assert [result["ref"] for result in document["results"]] == ["tiny@dense", "tiny@pruned"]
    for result in document["results"]:
        alone = client.post("/generate", json={**BODY, "model": result["ref"]}).json()
        assert result["generated_text"] == alone["generated_text"]
        assert (result["model"], result["variant"]) == (alone["model"], alone["variant"])
        assert 1 <= result["generated_tokens"] <= 10
        assert result["finish_reason"] in ("length", "eos_token")


def test_speedup_and_agreement_follow_from_what_is_shown(client: httpx.Client) -> None:
    dense, pruned = client.post("/compare", json=BODY).json()["results"]
    working = [result["timings"]["total_ms"] - result["timings"]["queue_ms"] for result in (dense, pruned)]
    assert pruned["speedup"] == pytest.approx(working[0] / working[1], rel=1e-2)
    assert (dense["speedup"], dense["agreement"]) == (
        1.0,
        {"exact": True, "rouge_l": 1.0, "token_edit_distance": 0},
    )
    assert pruned["agreement"]["exact"] == (pruned["generated_text"] == dense["generated_text"])
    assert 0 <= pruned["agreement"]["rouge_l"] <= 1
    assert pruned["agreement"]["token_edit_distance"] <= 10


def test_the_stream_tells_token_by_token_then_variant_by_variant_then_all(client: httpx.Client) -> None:
    events = events_of(client.post("/compare", json={**BODY, "stream": True}))
    *before, document = events
    assert [result["ref"] for result in document["results"]] == ["tiny@dense", "tiny@pruned"]
    position = 0
    for result in document["results"]:
        names = {name: result[name] for name in ("ref", "model", "variant")}
        text = ""
        for index in range(1, result["generated_tokens"] + 1):
            event = before[position]
            position += 1
            assert event.items() >= {**names, "index": index}.items()
            text += event["token"]["text"]
        assert text == result["generated_text"]
        assert before[position] == {
            **names,
            **{key: result[key] for key in ("generated_text", "timings", "finish_reason", "generated_tokens", "seed")},
        }
        position += 1
    assert position == len(before)
    texts = [result["generated_text"] for result in client.post("/compare", json=BODY).json()["results"]]
    assert [result["generated_text"] for result in document["results"]] == texts


def test_models_are_run_once_each_in_the_order_asked_for(client: httpx.Client) -> None:
    models = ["tiny@pruned", "tiny:1", "tiny@dense"]
    document = client.post("/compare", json={**BODY, "models": models}).json()
    assert [result["ref"] for result in document["results"]] == ["tiny@pruned", "tiny@dense"]
    assert document["baseline"] == "tiny@dense"
    alone = client.post("/compare", json={**BODY, "models": ["tiny@pruned"]}).json()
    assert alone["baseline"] == "tiny@pruned"


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"inputs": ["a", "b"]}, 422, "inputs is a list"),
        ({"models": []}, 422, "models is a list"),
        ({"models": ["other"]}, 404, "'other' is not loaded: use one of tiny@dense, tiny@pruned"),
        ({"inputs": "", "stream": True}, 422, "inputs is empty"),
        ({"model": "tiny"}, 422, "model is not known"),
    ],
)
def test_refusals(client: httpx.Client, change: dict[str, Any], status: int, message: str) -> None:
    response = client.post("/compare", json={**BODY, **change})
    assert (response.status_code, message in response.json()["error"]) == (status, True), response.text


def test_what_the_second_variant_refuses_is_no_answer(client: httpx.Client) -> None:
    body = {**BODY, "inputs": "x" * 62}  # the end token comes on top; the first variant takes 64, the second 62
    message = "inputs has 63 tokens, but the model takes at most 62"
    response = client.post("/compare", json=body)
    assert (response.status_code, message in response.json()["error"]) == (422, True), response.text
    *before, error = events_of(client.post("/compare", json={**body, "stream": True}))
    assert (error["ref"], error["error_type"], message in error["error"]) == ("tiny@pruned", "validation", True)
    assert before[-1]["ref"] == "tiny@dense"


def test_two_comparisons_at_once_both_end(client: httpx.Client) -> None:
    with client.stream("POST", "/compare", json={**BODY, "stream": True}) as first:
        second = client.post("/compare", json=BODY).json()
        data = [line for line in first.iter_lines() if line.startswith("data:")]
    assert "results" in json.loads(data[-1].removeprefix("data:"))
    assert len(second["results"]) == 2
