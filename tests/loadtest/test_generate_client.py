"""Every way in which one request can go."""

import json
import math
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from loadtest.client.generate_client import GenerateClient, Reply

TIMINGS = {"queue_ms": 0.5, "encode_ms": 1.5, "decode_ms": 8, "total_ms": 10.0, "time_to_first_token_ms": 1}
GOOD = {"generated_text": "N AE SH", "ref": "g2p@dense", "timings": TIMINGS}


class Scripted(socketserver.ThreadingTCPServer):
    """Answers each request with the bytes in `answer`, and keeps what it was sent."""

    allow_reuse_address = True
    daemon_threads = True
    answer = b""
    received = b""


class Handler(socketserver.StreamRequestHandler):
    server: Scripted

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.rfile.readline()
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-l"))
        self.server.received = head + self.rfile.read(length)
        self.wfile.write(self.server.answer)


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with Scripted(("127.0.0.1", 0), Handler) as scripted:
        threading.Thread(target=scripted.serve_forever, daemon=True).start()
        yield scripted
        scripted.shutdown()


def ask(server: Scripted, status: int, document: Any, *headers: str, **options: Any) -> Reply:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", "connection: close", *headers]
    server.answer = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    return ask_as_it_is(server, **options)


def ask_as_it_is(server: Scripted, *, max_new_tokens: int | None = None, path: str = "") -> Reply:
    client = GenerateClient(
        f"http://127.0.0.1:{server.server_address[1]}{path}",
        {"Authorization": "Bearer key"},
        concurrency=1,
        max_new_tokens=max_new_tokens,
    )
    answer = client.generate("g2p@dense", "caf\u00e9")
    client.close()
    assert answer.ended >= answer.sent
    return answer


def test_an_answer_is_read_with_the_servers_timings(server: Scripted) -> None:
    answer = ask(server, 200, GOOD, "X-Generated-Tokens: 7")
    assert (answer.status, answer.outcome, answer.generated_tokens) == (200, "ok", 7)
    assert (answer.queue_ms, answer.encode_ms, answer.decode_ms, answer.total_ms) == (0.5, 1.5, 8.0, 10.0)
    assert answer.size_bytes == len(json.dumps(GOOD))


def test_what_is_sent(server: Scripted) -> None:
    ask(server, 200, GOOD, max_new_tokens=5, path="/nash")
    head, _, body = server.received.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /nash/generate HTTP/1.1\r\n")
    assert b"Authorization: Bearer key" in head
    assert b"Content-Type: application/json" in head
    assert json.loads(body) == {"inputs": "caf\u00e9", "model": "g2p@dense", "parameters": {"max_new_tokens": 5}}


def test_a_server_without_the_count_of_tokens(server: Scripted) -> None:
    answer = ask(server, 200, GOOD)
    assert (answer.outcome, answer.generated_tokens) == ("ok", None)


@pytest.mark.parametrize(
    ("status", "document", "outcome"),
    [
        (429, {"error": "full", "error_type": "overloaded"}, "overloaded"),
        (503, {"error": "full"}, "http_503"),
        (500, b"<html>", "http_500"),
        (500, {"error_type": "<script>\n"}, "http_500"),
        (500, [1], "http_500"),
        (302, b"", "http_302"),
        (200, b"<html>", "bad_answer"),
        (200, [GOOD], "bad_answer"),
        (200, {**GOOD, "ref": "g2p@pruned"}, "bad_answer"),
        (200, {**GOOD, "timings": {}}, "bad_answer"),
        (200, {**GOOD, "generated_text": None}, "bad_answer"),
        (200, {**GOOD, "timings": {**TIMINGS, "total_ms": math.nan}}, "bad_answer"),
        (200, {**GOOD, "timings": {**TIMINGS, "queue_ms": -0.1}}, "bad_answer"),
        (200, {**GOOD, "timings": {**TIMINGS, "encode_ms": 1e300}}, "bad_answer"),
        (200, {**GOOD, "timings": {**TIMINGS, "decode_ms": 10**400}}, "bad_answer"),
    ],
)
def test_what_is_no_answer_is_an_outcome(server: Scripted, status: int, document: Any, outcome: str) -> None:
    answer = ask(server, status, document)
    assert (answer.status, answer.outcome, answer.total_ms) == (status, outcome, None)


@pytest.mark.parametrize("tokens", ["-1", "many", "9" * 400])
def test_a_count_of_tokens_that_cannot_be(server: Scripted, tokens: str) -> None:
    assert ask(server, 200, GOOD, f"X-Generated-Tokens: {tokens}").outcome == "bad_answer"


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", b"no http\r\n\r\n"])
def test_broken_connections_are_an_outcome(server: Scripted, sent: bytes) -> None:
    server.answer = sent
    assert ask_as_it_is(server).outcome == "connection"


def test_nobody_there_is_an_outcome() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_address[1]
    client = GenerateClient(f"http://127.0.0.1:{port}", {}, concurrency=1, max_new_tokens=None)
    assert client.generate("g2p@dense", "a").outcome == "connection"


def test_silence_is_a_timeout(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.client.generate_client.TIMEOUT_S", 0.05)
    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as silent:  # listens, and nobody takes the call
        client = GenerateClient(f"http://127.0.0.1:{silent.server_address[1]}", {}, concurrency=1, max_new_tokens=None)
        assert client.generate("g2p@dense", "a").outcome == "timeout_in_client"
