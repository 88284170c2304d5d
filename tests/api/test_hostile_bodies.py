"""What no client sends by mistake, on every route that takes a body: a 4xx that names what is wrong, and no harm."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.api.openapi.operations import OPERATIONS
from tests.running_server import RunningServer

BODIES: dict[str, dict[str, Any]] = {
    "POST /generate": {"inputs": "abc"},
    "POST /generate_stream": {"inputs": "abc"},
    "POST /": {"inputs": "abc"},
    "POST /models/tiny@dense": {"inputs": "abc"},
    "POST /compare": {"inputs": "abc"},
    "POST /tokenize": {"inputs": "abc"},
    "POST /v1/completions": {"prompt": "abc"},
    "POST /translate": {"q": "abc", "source": "en", "target": "de"},
    "POST /models": {"model": "tiny@other"},
    "POST /models/tiny@dense/reload": {"keys": "dtype=float32"},
    "PUT /models/tiny/traffic": {"weights": {}},
}
ROUTES = list(BODIES)


def main_field(route: str) -> str:
    return next(iter(BODIES[route]))


def hostile(route: str) -> Iterator[tuple[str, bytes, int, str]]:
    """A name, a body, the status, and what the error begins with."""
    field, whole = main_field(route), json.dumps(BODIES[route])

    def holding(value: str) -> bytes:
        return f'{{"{field}": {value}}}'.encode()

    def beside(more: str) -> bytes:
        return f"{whole[:-1]}, {more}}}".encode()

    yield "too long", holding('"' + "x" * 20_000 + '"'), 413, "the body"
    yield "deep", holding("[" * 5000 + "]" * 5000), 422, "the body is not JSON"
    yield "deep and unknown", beside('"x": ' + '{"a":' * 150 + "1" + "}" * 150), 422, "x is not"
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        yield number, holding(number), 422, field
    yield "a huge number", holding("9" * 4000), 422, field
    yield "a number beyond reading", holding("9" * 8000), 422, "the body is not JSON"
    yield "a lone surrogate", holding(r'"\ud800"'), 422, "the body is not JSON"
    yield "not UTF-8", holding('""').replace(b'""', b'"\xff\xfe"'), 422, "the body is not JSON"
    yield "a raw control character", holding('"a\x00b"'), 422, "the body is not JSON"
    yield "unknown", beside('"unheard_of": 1'), 422, "unheard_of is not known"
    yield "unknown and nameless", beside('"": 1'), 422, "'' is not known"
    yield "unknown and endless", beside('"' + "k" * 10_000 + '": 1'), 422, "'kkk"
    yield "nothing", b"", 422, "the body is not JSON"
    yield "cut off", whole[:-1].encode(), 422, "the body is not JSON"
    yield "two documents", 2 * whole.encode(), 422, "the body is not JSON"
    for value in ("7", "null", "true", '[{"a": 1}]'):
        yield f"{field}: {value}", holding(value), 422, field
        yield f"the whole: {value}", value.encode(), 422, "the body is"


def error_of(answer: httpx.Response) -> str:
    error = answer.json()["error"]
    return str(error["message"] if isinstance(error, dict) else error)


def test_every_route_with_a_body_is_here() -> None:
    with_body = {label for label, operation in OPERATIONS.items() if operation.body is not None}
    named = {route.replace("tiny@dense", "{ref}").replace("/tiny/", "/{model}/") for route in ROUTES}
    assert named == with_body


@pytest.mark.parametrize("route", ROUTES)
def test_hostile_bodies_are_refused_by_name(client: httpx.Client, route: str) -> None:
    method, path = route.split(" ")
    foreign = path.startswith(("/v1/", "/translate"))
    for name, body, status, told in hostile(route):
        if route.endswith("reload") and not body:
            continue  # there it means: as it was
        answer = client.request(method, path, content=body, headers={"content-type": "application/json"})
        expected = 400 if status == 422 and foreign else status
        assert answer.status_code == expected, (name, answer.status_code, answer.text[:300])
        assert error_of(answer).startswith(told), (name, error_of(answer)[:300])
        assert len(answer.content) < 3000, name


@pytest.mark.parametrize("route", ROUTES[:7])
def test_control_characters_in_a_text_do_no_harm(client: httpx.Client, route: str) -> None:
    method, path = route.split(" ")
    body = {**BODIES[route], main_field(route): "a\u0000\u0007\u001b[31m\u007f\u2028\u202e\ufffe b"}
    answer = client.request(method, path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.content.isascii()


def test_of_two_equal_keys_the_last_counts(client: httpx.Client, server: RunningServer) -> None:
    """As JSON's readers do it; what matters is that both readers here agree."""
    twice = client.post("/tokenize", content=b'{"inputs": "abc", "inputs": "d"}').json()
    assert twice == client.post("/tokenize", json={"inputs": "d"}).json()
    assert len(server.worker_pids()) == 2
