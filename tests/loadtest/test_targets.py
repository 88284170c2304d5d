"""Which server, and which of its variants."""

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from loadtest.errors import LoadtestError, UsageError
from loadtest.loaded_models import (
    API_KEY_VARIABLE,
    ServerClient,
    Target,
    api_key,
    baseline_of,
    checked_host,
    choose_targets,
)


def loaded(*refs: str) -> list[dict[str, Any]]:
    return [{"ref": ref, "model": ref.split("@")[0], "variant": ref.split("@")[1]} for ref in refs]


@contextmanager
def answering(answers: dict[str, tuple[int, bytes]]) -> Iterator[tuple[str, list[Any]]]:
    """A server with these answers, its address, and the headers of what it was asked."""
    asked: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(dict(self.headers))
            status, body = answers[self.path]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


READY = (200, b'{"ready": true}')


def test_all_variants_of_the_first_family_are_the_default() -> None:
    models = loaded("g2p@dense", "titles@dense", "g2p@pruned")
    assert choose_targets([], models) == [
        Target(ref="g2p@dense", name="dense"),
        Target(ref="g2p@pruned", name="pruned"),
    ]


def test_weights_are_read_and_names_are_unique() -> None:
    models = loaded("g2p@dense", "titles@dense", "g2p@pruned")
    chosen = choose_targets(["titles@dense,weight=2.5", "g2p@dense"], models)
    assert chosen == [
        Target(ref="titles@dense", name="titles@dense", weight=2.5),
        Target(ref="g2p@dense", name="g2p@dense", weight=1.0),
    ]
    # What Locust's process is told is read back as the same.
    assert choose_targets([str(target) for target in chosen], models) == chosen


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["g2p@other"], "model 'g2p@other' is not loaded: use one of g2p@dense, g2p@pruned"),
        (["g2p@dense", "g2p@dense,weight=2"], "given twice"),
        (["g2p@dense,weight=0"], "'weight=0' is not weight=N"),
        (["g2p@dense,weight=nan"], "weight=N with a number above 0"),
        (["g2p@dense,share=2"], "'share=2' is not weight=N"),
        (["g2p@dense,"], "write g2p@dense,weight=2"),
        (["g2p@dense,weight=1e308", "g2p@pruned,weight=1e308"], "give smaller ones, only their proportion counts"),
    ],
)
def test_bad_models_are_refused(asked: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_targets(asked, loaded("g2p@dense", "g2p@pruned"))


def test_dense_is_the_baseline_wherever_it_stands() -> None:
    models = loaded("g2p@pruned", "g2p@dense", "g2p@pruned-1")
    assert baseline_of(choose_targets([], models), models).ref == "g2p@dense"
    assert baseline_of(choose_targets(["g2p@pruned-1", "g2p@pruned"], models), models).ref == "g2p@pruned-1"


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1:8000", "ftp://a", "http://", "http://a?b", "http://a:99999", "http://u@a"),
        *("http://a b", "http://a/b c", "http://a/\x7f", "http://a/\u00e9", "http://a\n.example"),
    ],
)
def test_what_is_no_address_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="write one such as http://127"):
        checked_host(host)


def test_a_slash_at_the_end_is_dropped() -> None:
    assert checked_host("http://[::1]:8000/") == "http://[::1]:8000"
    assert checked_host("https://models.example/nash/") == "https://models.example/nash"


def test_the_key_is_sent() -> None:
    with answering({"/health/ready": READY, "/models": (200, json.dumps(loaded("a@b")).encode())}) as (host, asked):
        assert ServerClient(host, "secret").models() == loaded("a@b")
        assert [headers["Authorization"] for headers in asked] == ["Bearer secret"] * 2


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
def test_what_speaks_something_else(answer: bytes) -> None:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(LoadtestError, match=r"does not speak HTTP .* give the address of a nash server"):
            ServerClient(f"http://127.0.0.1:{server.server_address[1]}", None).models()
        thread.join()


def test_white_space_around_the_key_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, key in ((" secret\r\n", "secret"), ("\n", None), ("", None)):
        monkeypatch.setenv(API_KEY_VARIABLE, value)
        assert api_key() == key
    monkeypatch.delenv(API_KEY_VARIABLE)
    assert api_key() is None


@pytest.mark.parametrize("key", ["sec\nret", "sec\x01ret", "sec\u00e9ret"])
def test_a_key_that_no_header_may_hold_is_refused_unseen(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, key)
    with pytest.raises(UsageError, match="NASH_API_KEY has characters that an HTTP header cannot hold") as raised:
        api_key()
    assert "sec" not in str(raised.value)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_refused(number: str) -> None:
    models = json.dumps([{**loaded("a@b")[0], "size": 0}]).replace("0", number).encode()
    answers = {"/health/ready": READY, "/models": (200, models), "/info": (200, models)}
    with answering(answers) as (host, _):
        for ask in (ServerClient(host, None).models, ServerClient(host, None).info):
            with pytest.raises(LoadtestError, match="is not JSON"):
                ask()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            {"/health/ready": (503, b'{"ready": false, "models": [{"ref": "a@b", "state": "loading"}]}')},
            r"is not ready \(a@b: loading\)",
        ),
        ({"/health/ready": (200, b"<html>")}, "is not JSON"),
        ({"/health/ready": (404, b"")}, "answered 404"),
        ({"/health/ready": READY, "/models": (401, b"{}")}, "set NASH_API_KEY"),
        ({"/health/ready": READY, "/models": (200, b"[]")}, "does not list models"),
        ({"/health/ready": READY, "/models": (200, b'[{"ref": 1}]')}, "does not list models"),
        (
            {"/health/ready": READY, "/models": (200, json.dumps(loaded("a@b\n")).encode())},
            "does not list models",
        ),
    ],
)
def test_a_server_that_is_not_what_it_should_be(answers: dict[str, tuple[int, bytes]], message: str) -> None:
    with answering(answers) as (host, _), pytest.raises(LoadtestError, match=message) as raised:
        ServerClient(host, None).models()
    assert not isinstance(raised.value, UsageError)
