"""What one client can hold: connections, time, headers, unfinished bodies. Raw sockets, for clients behave well."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.running_server import RunningServer, publish_tiny_models

HEADER_BYTES = 8192
CONNECTIONS = 12
SLOW_S = 0.5  # the server's patience
HEAD = b"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with little patience."""
    store = publish_tiny_models(tmp_path_factory.mktemp("strict"))
    limits = {
        "--header-s": SLOW_S,
        "--transfer-s": SLOW_S,
        "--max-header-bytes": HEADER_BYTES,
        "--max-connections": CONNECTIONS,
        "--max-bodies-bytes": 150_000,
    }
    flags = [str(each) for pair in limits.items() for each in pair]
    with RunningServer("--store", str(store), "--model", "tiny@dense,threads=1", *flags) as running:
        yield running


class Raw:
    """A connection whose bytes the test writes itself."""

    def __init__(self, server: RunningServer) -> None:
        url = httpx.URL(server.url)
        self.socket = socket.create_connection((url.host, url.port), timeout=20)

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str]]:
        """The status and the document of what comes until the other side closes; 0 for nothing."""
        data = b""
        try:
            while piece := self.socket.recv(1 << 16):
                data += piece
        except ConnectionError:  # what was not read any more is told so
            pass
        if not data:
            return 0, {}
        head, _, body = data.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)


def healthy(server: RunningServer) -> bool:
    return httpx.get(f"{server.url}/health", timeout=20).status_code == 200


def test_headers_are_bounded(strict: RunningServer) -> None:
    with Raw(strict) as client:
        try:
            for _ in range(1000):
                client.send(b"GET /health HTTP/1.1\r\nx-long: " + b"a" * 100_000)
        except ConnectionError:
            pass
        status, document = client.answer()
    assert status in (0, 431)  # the answer may be lost where the client still writes
    with Raw(strict) as client:
        client.send(b"GET /health HTTP/1.1\r\nx-long: " + b"a" * (HEADER_BYTES + 100))
        status, document = client.answer()
    assert (status, document["error_type"]) == (431, "too_large")
    assert f"more than {HEADER_BYTES} bytes" in document["error"]
    assert healthy(strict)


def test_a_body_behind_short_headers_in_one_packet_is_no_header(strict: RunningServer) -> None:
    body = json.dumps({"inputs": "abc", "parameters": {"stop": ["x" * 200] * 16}, "model": "tiny@dense"}).encode()
    body += b" " * (3 * HEADER_BYTES)
    with Raw(strict) as client:
        client.send(HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        assert client.answer()[0] == 200


@pytest.mark.parametrize(
    ("begun", "status", "told"),
    [
        (b"", 0, ""),
        (b"\r\n", 408, "the headers did not arrive within 0.5 s"),
        (b"GET /health HT", 408, "the headers did not arrive within 0.5 s"),
        (HEAD, 408, "the headers did not arrive within 0.5 s"),
        (HEAD + b'content-length: 100\r\n\r\n{"inputs"', 408, "the body did not arrive within 0.5 s"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n", 408, "the body did not arrive within 0.5 s"),
        (b"nonsense\r\n\r\n", 400, "this is not HTTP"),
    ],
)
def test_what_does_not_arrive_is_ended(begun: bytes, status: int, told: str, strict: RunningServer) -> None:
    with Raw(strict) as client:
        began_s = time.monotonic()
        client.send(begun)
        found, document = client.answer()
        assert time.monotonic() - began_s < 10 * SLOW_S
    assert found == status
    assert told in document.get("error", "")


def test_bytes_that_trickle_in_buy_no_time(strict: RunningServer) -> None:
    def trickle(client: Raw) -> None:
        for _ in range(300):
            client.send(b"x: y\r\n")
            time.sleep(SLOW_S / 10)

    with Raw(strict) as client:
        client.send(HEAD)
        with pytest.raises(ConnectionError):
            trickle(client)


def test_idle_connections_make_room(strict: RunningServer) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=strict.url)) for _ in range(3 * CONNECTIONS)]
        assert [client.get("/health").status_code for client in clients] == [200] * len(clients)


def test_connections_are_bounded(strict: RunningServer) -> None:
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(Raw(strict)).send(b"GET")
        late = stack.enter_context(Raw(strict))
        status, document = late.answer()
        assert (status, document["error_type"]) == (503, "unavailable")
    time.sleep(2 * SLOW_S)
    assert healthy(strict)


def test_unfinished_bodies_are_bounded_together(strict: RunningServer) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(Raw(strict)).send(HEAD + b"content-length: 90000\r\n\r\n" + b" " * 70_000)
        time.sleep(SLOW_S / 4)
        answer = httpx.post(f"{strict.url}/generate", content=b" " * 60_000 + b'{"inputs": "abc"}', timeout=20)
        third = stack.enter_context(Raw(strict))
        third.send(HEAD + b"content-length: 90000\r\nconnection: close\r\n\r\n" + b" " * 70_000)
        status, document = third.answer()
    assert answer.status_code in (200, 429)  # it may have arrived whole at once
    assert (status, document["error_type"]) == (429, "overloaded")
    time.sleep(2 * SLOW_S)
    answer = httpx.post(f"{strict.url}/generate", content=b" " * 90_000 + b'{"inputs": "abc"}', timeout=20)
    assert answer.status_code == 200  # what was given up is not counted any more


def test_requests_one_behind_another_are_all_answered(strict: RunningServer) -> None:
    request = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    with Raw(strict) as client:
        client.send((request + b"\r\n") * 3 + request + b"connection: close\r\n\r\n")
        data = b""
        while piece := client.socket.recv(1 << 16):
            data += piece
    assert data.count(b"HTTP/1.1 200 OK") == 4


def test_trailers_are_bounded(strict: RunningServer) -> None:
    with Raw(strict) as client:
        client.send(HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
        try:
            for _ in range(100):
                client.send(b"x: " + b"a" * 1000 + b"\r\n")
        except ConnectionError:
            pass
        assert client.answer()[0] in (0, 431)
    assert healthy(strict)


def test_a_slow_second_request_does_not_spoil_the_first_answer(strict: RunningServer) -> None:
    body = json.dumps({"inputs": "abc", "parameters": {"max_new_tokens": 256, "min_new_tokens": 255}}).encode()
    slow = HEAD + b"content-length: 100\r\n\r\n"
    with Raw(strict) as client:
        client.send(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body + slow)
        first = client.socket.recv(1 << 20)
        assert first.startswith(b"HTTP/1.1 200 OK")
        rest = first.partition(b"\r\n\r\n")[2]
        while not rest.endswith(b"}"):
            rest += client.socket.recv(1 << 20)
        assert json.loads(rest)["generated_text"]
        assert client.answer()[0] == 408


def test_half_sent_requests_hold_no_stop_up(tmp_path: Path) -> None:
    store = publish_tiny_models(tmp_path)
    with RunningServer("--store", str(store), "--model", "tiny@dense,threads=1", "--drain-s", "20") as server:
        with ExitStack() as stack:
            clients = [stack.enter_context(Raw(server)) for _ in range(5)]
            for client in clients:
                client.send(HEAD + b'content-length: 100\r\n\r\n{"inputs"')
            assert healthy(server)
            began_s = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            answers = [client.answer() for client in clients]
            assert [status for status, _ in answers] == [503] * 5
            assert "shutting down" in answers[0][1]["error"]
        assert server.process.wait(30) == 0
        assert time.monotonic() - began_s < 10
        rest = []
        while line := server._lines.get(timeout=5):
            rest.append(line)
        assert not any("Traceback" in line for line in rest), "".join(rest)
