"""Texts that are cut, split, or far too long."""

import threading
import time
from typing import Any

import httpx
import pytest

from tests.running_server import RunningServer


def generate(http: httpx.Client, inputs: Any, **parameters: Any) -> httpx.Response:
    body = {"inputs": inputs, "parameters": {"max_new_tokens": 6, **parameters}, "model": "tiny@dense"}
    return http.post("/generate", json=body)


def test_what_was_cut_is_said(client: httpx.Client) -> None:
    answer = generate(client, ["abcdefgh", "ab"], truncate=4)
    assert [each.get("truncated_tokens") for each in answer.json()] == [5, None]
    assert answer.headers["x-truncated-tokens"] == "5"
    whole = generate(client, "abcdefgh")
    assert "truncated_tokens" not in whole.json()
    assert "x-truncated-tokens" not in whole.headers
    events = client.post("/generate_stream", json={"inputs": "abcdefgh", "parameters": {"truncate": 4}}).text
    assert '"truncated_tokens":5' in events
    task = client.post("/", json={"inputs": "a" * 100, "parameters": {"truncation": "only_first"}}).json()
    assert task[0]["truncated_tokens"] == 101 - 64


def test_windows_are_answered_and_joined(client: httpx.Client) -> None:
    text = "abcd " * 40
    answer = generate(client, text, split="windows").json()
    pieces = answer["pieces"]
    assert len(pieces) >= 3
    for piece in pieces:
        alone = generate(client, text[piece["start"] : piece["stop"]]).json()
        assert piece["generated_text"] == alone["generated_text"]
    assert answer["generated_text"] == " ".join(piece["generated_text"].strip() for piece in pieces)
    covered = "".join(text[piece["start"] : piece["stop"]].replace(" ", "") for piece in pieces)
    assert covered == text.replace(" ", "")
    assert (
        generate(client, "abc", split="none").json()["generated_text"]
        == generate(client, "abc").json()["generated_text"]
    )


def test_sentences_are_answered_alone(client: httpx.Client) -> None:
    one, two = generate(client, ["Ab. Cd", "ef"], split="sentences").json()
    assert [(piece["start"], piece["stop"]) for piece in one["pieces"]] == [(0, 3), (4, 6)]
    assert [(piece["start"], piece["stop"]) for piece in two["pieces"]] == [(0, 2)]
    assert two["generated_text"] == generate(client, "ef").json()["generated_text"].strip()


@pytest.mark.parametrize(
    ("inputs", "parameters", "told"),
    [
        ("abc", {"split": "words"}, "parameters.split"),
        ("abc", {"split": "windows", "details": True}, "parameters.details is not available for texts that are split"),
        ("abc", {"split": "windows", "truncate": 4}, "parameters.truncate is not available"),
        ("abc", {"split": "windows", "num_beams": 2, "num_return_sequences": 2}, "cannot be joined"),
        (["abc", "  "], {"split": "sentences"}, "inputs[1] is empty"),
        ("Ab. " * 300, {"split": "sentences"}, "inputs has more than 256 pieces"),
    ],
)
def test_refusals(inputs: Any, parameters: dict[str, Any], told: str, client: httpx.Client) -> None:
    answer = generate(client, inputs, **parameters)
    assert answer.status_code == 422
    assert told in answer.json()["error"]


def test_where_it_cannot_be_split(client: httpx.Client) -> None:
    body = {"inputs": "abc", "parameters": {"split": "windows"}}
    for path, more in (("/generate", {"stream": True}), ("/generate_stream", {}), ("/compare", {})):
        answer = client.post(path, json=body | more)
        assert (answer.status_code, "split" in answer.json()["error"]) == (422, True)


def test_answers_that_would_be_many_megabytes_are_refused(client: httpx.Client) -> None:
    parameters = {"max_new_tokens": 200, "do_sample": True, "num_return_sequences": 4, "top_n_tokens": 20}
    answer = generate(client, ["abc"] * 2, details=True, **parameters)
    assert answer.status_code == 422
    assert "the details could have 33600 tokens, but an answer reports at most 20000" in answer.json()["error"]
    assert generate(client, ["abc"] * 2, **parameters).status_code == 200  # nothing is reported


def test_others_are_served_while_long_texts_come(server: RunningServer) -> None:
    """Each as long as a body may be: they are refused or cut, and nobody waits for their tokens to be counted."""
    body = {"inputs": "abc de " * 2700, "model": "tiny@dense"}
    answers: list[int] = []

    def send(**parameters: Any) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            for _ in range(5):
                answers.append(http.post("/generate", json=body | {"parameters": parameters}).status_code)

    senders = [threading.Thread(target=send, kwargs={"truncate": 8} if i % 2 else {}) for i in range(6)]
    for sender in senders:
        sender.start()
    with httpx.Client(base_url=server.url, timeout=60) as http:
        while any(sender.is_alive() for sender in senders):
            assert http.get("/health").status_code == 200
            time.sleep(0.01)
    assert sorted(set(answers)) == [200, 422]
