import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.frontend.requests.parameters import RequestParameters
from tests.running_server import RunningServer

OK = {"inputs": "hello", "parameters": {"max_new_tokens": 2}}


def refusal(response: httpx.Response, status: int, error_type: str) -> str:
    """The text of an error, after its shape is checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert set(document) == {"error", "error_type"}
    assert document["error_type"] == error_type
    return str(document["error"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not JSON (EOF while parsing an object at line 1 column 1): send an object"),
        (b"", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b'{"inputs": "\\ud800"}', "the body is not JSON"),
        (b"[" * 10_000, "the body is not JSON (recursion limit exceeded"),
        (b"[]", "the body is a list: should be an object"),
        (b"{}", "inputs is missing: give it"),
        (b'{"inputs": 3}', "inputs is a number: give a text or a list of texts"),
        (b'{"inputs": null}', "inputs is null: give a text or a list of texts"),
        (b'{"inputs": []}', "inputs is an empty list: give at least one text"),
        (b'{"inputs": ["a", {}]}', "inputs is an object at index 1: give a text"),
        (b'{"inputs": "a", "parameters": []}', "parameters is a list: should be an object"),
        (b'{"inputs": "a", "stream": "yes"}', "stream is a text: should be a valid boolean"),
        (b'{"inputs": "a", "model": "UPPER"}', "model: model name 'UPPER' is not valid"),
        (b'{"inputs": "a", "modell": "x"}', "modell is not known: leave it out, or use one of inputs, parameters"),
    ],
)
def test_a_malformed_body_is_refused_by_name(client: httpx.Client, body: bytes, message: str) -> None:
    assert refusal(client.post("/generate", content=body), 422, "validation").startswith(message)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_tokens": 3}, "parameters.max_tokens is not known: leave it out, or use one of max_new_tokens,"),
        ({"max_new_tokens": 0}, "parameters.max_new_tokens is 0: should be greater than or equal to 1"),
        ({"max_new_tokens": "3"}, "parameters.max_new_tokens is a text: should be a valid integer"),
        ({"max_new_tokens": True}, "parameters.max_new_tokens is true: should be a valid integer"),
        ({"max_new_tokens": 2.5}, "parameters.max_new_tokens is 2.5: should be a valid integer"),
        ({"max_new_tokens": 10**40}, "parameters.max_new_tokens is a number: should be less than"),
        ({"max_new_tokens": 201}, "parameters.max_new_tokens is 201: it must be from 1 to 200"),
        (
            {"min_new_tokens": 5, "max_new_tokens": 4},
            "parameters.min_new_tokens is 5: it must be from 0 to max_new_tok",
        ),
        ({"truncate": 1}, "parameters.truncate is 1: should be greater than or equal to 2"),
        (
            {"temperature": 0},
            "parameters.temperature is 0: should be greater than 0, or leave it out for the likeliest",
        ),
        (
            {"temperature": 1e-40},
            "parameters.temperature is 1e-40: it must be a number of at least 1e-30, or leave it out",
        ),
        ({"repetition_penalty": 0}, "parameters.repetition_penalty is 0: should be greater than or equal to 0.000001"),
        ({"top_p": 1.5}, "parameters.top_p is 1.5: should be less than or equal to 1"),
        ({"top_k": -1}, "parameters.top_k is -1: should be greater than or equal to 0"),
        ({"seed": -1}, "parameters.seed is -1: should be greater than or equal to 0"),
        ({"num_beams": 5}, "parameters.num_beams is 5: it must be from 1 to 4, the slots"),
        ({"num_beams": 2, "best_of": 3}, "parameters.best_of is 3, but num_beams is 2: ask for at most as many"),
        ({"best_of": 2}, "parameters.best_of is 2, but greedy decoding has one answer: set num_beams"),
        ({"num_return_sequences": 2}, "parameters.num_return_sequences is 2, but greedy decoding has one answer"),
        ({"best_of": 2, "num_return_sequences": 3}, "parameters.best_of and num_return_sequences mean the same: give"),
        ({"length_penalty": 1e9}, "parameters.length_penalty is 1000000000.0: should be less than or equal to 10"),
        ({"early_stopping": "soon"}, 'parameters.early_stopping is neither true, false nor "never": give one of them'),
        ({"stop": "x"}, "parameters.stop is a text: should be a valid array"),
        ({"stop": [""]}, "parameters.stop[0] has 0 characters: give from 1 to 256, or leave it out"),
        ({"stop": ["x"] * 17}, "parameters.stop has 17 items: give at most 16"),
        ({"top_n_tokens": 21}, "parameters.top_n_tokens is 21: should be less than or equal to 20"),
        ({"forced_bos_token": "xyz"}, "parameters.forced_bos_token is not a token of this model's tokenizer: write it"),
        ({"forced_bos_token_id": 30}, "parameters.forced_bos_token_id holds token 30, which is outside the vocabulary"),
        ({"forced_bos_token": "a", "forced_bos_token_id": 3}, "parameters.forced_bos_token and forced_bos_token_id me"),
        ({"decoder_input_text": "x" * 200}, "parameters.decoder_input_text has 200 tokens, which leaves none of this"),
        ({"decoder_input_text": "x" * 200, "max_new_tokens": 1}, "parameters.decoder_input_text has 200 tokens: it m"),
        ({"watermark": True}, "parameters.watermark is not available here: leave it out"),
        ({"frequency_penalty": 1.5}, "parameters.frequency_penalty is not available here: leave it out"),
        ({"grammar": {"type": "json", "value": {}}}, "parameters.grammar is not available here: leave it out"),
        ({"adapter_id": "a"}, "parameters.adapter_id is not available here: leave it out"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_by_name(
    client: httpx.Client, parameters: dict[str, Any], message: str
) -> None:
    response = client.post("/generate", json={"inputs": "a", "parameters": parameters})
    assert refusal(response, 422, "validation").startswith(message)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"foo": 1}, "parameters.foo is not known: leave it out, or use one of max_new_tokens,"),
        (
            {"generate_parameters": {"max_length": 9}},
            "parameters.generate_parameters.max_length is not known: leave it",
        ),
        (
            {"generate_parameters": {"top_p": 2.0}},
            "parameters.generate_parameters.top_p is 2.0: should be less than or",
        ),
        ({"truncation": "some"}, "parameters.truncation is a text: should be 'do_not_truncate', 'longest_first'"),
        ({"tgt_lang": "fr_XX"}, "parameters.tgt_lang is given, but this model's tokenizer has no languages: leave it"),
        (
            {"tgt_lang": "fr", "forced_bos_token": "a"},
            "parameters.tgt_lang and a forced_bos_token mean the same: give o",
        ),
        (
            {"best_of": 2, "generate_parameters": {"num_return_sequences": 3}},
            "parameters.best_of and num_return_sequences mean the same: give one of them",
        ),
    ],
)
def test_what_task_clients_send_is_refused_by_name_too(
    client: httpx.Client, parameters: dict[str, Any], message: str
) -> None:
    response = client.post("/", json={"inputs": "a", "parameters": parameters})
    assert refusal(response, 422, "validation").startswith(message)


def test_texts_outside_the_model_are_refused_with_their_place(client: httpx.Client) -> None:
    def error(inputs: object) -> str:
        return refusal(client.post("/generate", json={"inputs": inputs}), 422, "validation")

    assert error("") == "inputs is empty: give at least one character that is not white space"
    assert error("x" * 64) == (
        'inputs has 65 tokens, but the model takes at most 64: shorten it, or set "truncate": 64 to use its beginning'
    )
    assert error(["a", "", "b"]).startswith("inputs[1] is empty")
    assert error(["a", "x" * 70]).startswith("inputs[1] has 71 tokens")
    assert error(["a"] * 17) == "inputs has 17 texts, but a request takes at most 16: send several requests"


def test_what_is_not_there_is_not_found(client: httpx.Client) -> None:
    response = client.post("/generate", json={**OK, "model": "tiny@other"})
    assert refusal(response, 404, "not_found") == (
        "model 'tiny@other' is not loaded: use one of tiny@dense, tiny@pruned"
    )
    assert "/nothing is not served" in refusal(client.get("/nothing"), 404, "not_found")
    response = client.get("/generate")
    assert "GET /generate is not served: use POST" in refusal(response, 405, "not_found")
    assert response.headers["allow"] == "POST"


def test_a_body_over_the_limit_is_refused_whatever_its_headers_say(client: httpx.Client) -> None:
    message = "the body has more than 20000 bytes: send less at once"
    assert refusal(client.post("/generate", content=b"x" * 20_001), 413, "too_large") == message

    def chunks() -> Iterator[bytes]:
        yield from (b"x" * 5000 for _ in range(5))

    response = client.post("/generate", content=chunks())
    assert refusal(response, 413, "too_large") == message
    assert response.headers["connection"] == "close"


def test_a_full_queue_is_429_with_a_time_to_come_back(client: httpx.Client) -> None:
    body = {"inputs": ["b" * 60] * 16, "model": "tiny@pruned", "parameters": {"max_new_tokens": 200}}
    host, port = client.base_url.host, client.base_url.port
    assert port is not None
    content = json.dumps(body).encode()
    head = f"POST /generate HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    connections = [socket.create_connection((host, port)) for _ in range(2)]
    for connection in connections:  # 32 generations: four slots and 28 that wait
        connection.sendall(head + content)
    try:
        for _ in range(50):
            response = client.post("/generate", json=body)
            if response.status_code == 429:
                break
        assert "the queue is full" in refusal(response, 429, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8000"},
        {"host": "["},
        {"origin": "https://evil.example"},
        {"origin": "http://localhost:1"},
        {"origin": "null"},
    ],
)
def test_other_sites_are_refused_on_a_server_without_keys(client: httpx.Client, headers: dict[str, str]) -> None:
    response = client.post("/generate", json=OK, headers=headers)
    assert next(iter(headers.values())) in refusal(response, 403, "forbidden")


def test_the_own_page_and_other_names_of_this_machine_pass(client: httpx.Client, server: RunningServer) -> None:
    assert client.post("/generate", json=OK, headers={"origin": server.url}).status_code == 200
    name = f"localhost:{client.base_url.port}"
    assert client.post("/generate", json=OK, headers={"host": name, "origin": f"http://{name}"}).status_code == 200


def test_everything_on_the_wire_is_ascii(client: httpx.Client) -> None:
    response = client.post("/generate", json={"inputs": "a", "parameters": {"é\u2028": 1}})
    assert refusal(response, 422, "validation").startswith("parameters.é\u2028 is not known")
    assert response.content.isascii()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PARAMETERS = st.dictionaries(
    st.sampled_from([*RequestParameters.model_fields, "foo"]),
    st.integers(-3, 300) | st.floats(0, 3) | st.booleans() | JSON,
    max_size=4,
)
BODIES = st.fixed_dictionaries(
    {"inputs": st.text(max_size=20) | st.lists(st.text(max_size=5), max_size=3) | JSON},
    optional={"parameters": PARAMETERS | JSON, "model": st.just("tiny@pruned") | JSON, "stream": JSON},
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BODIES.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=40))
def test_no_body_at_all_is_a_fault_of_the_server(client: httpx.Client, body: bytes) -> None:
    response = client.post("/generate", content=body)
    assert response.status_code in (200, 404, 422), (body, response.text)
    assert response.content.isascii()
