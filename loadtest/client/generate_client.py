"""`POST /generate` with as little client time in the measurement as Locust allows.

This uses the connection pool underneath Locust's FastHttpUser directly. Against a server that answers at once, on one
core of an AMD EPYC, a request costs 70 us of processor time, including the report to Locust; through FastHttpUser's
session 120 to 170 us, through HttpUser's (requests) 640 us. A small model answers in 4 ms, and in many tests the client
shares the processor with the server.
"""

import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import gevent  # type: ignore[import-untyped]
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError

from loadtest.client.rows import BAD_ANSWER, CONNECTION, OK, TIMEOUT, UNFINISHED

TIMEOUT_S = 60.0  # without a byte from the server
_MOST = 1e9  # milliseconds or tokens; larger or negative values cannot have been measured
_ERROR_TYPE = re.compile(r"[a-z][a-z0-9_]{0,39}")  # anything else is recorded as http_NNN


class Reply(NamedTuple):
    """How one request went."""

    sent: float  # on the clock of time.perf_counter
    ended: float
    status: int = 0
    outcome: str = OK
    size_bytes: int = 0
    queue_ms: float | None = None
    encode_ms: float | None = None
    decode_ms: float | None = None
    total_ms: float | None = None
    generated_tokens: int | None = None


class GenerateClient:
    """Sends one text at a time; many greenlets may do so at once."""

    def __init__(self, host: str, headers: Mapping[str, str], *, concurrency: int, max_new_tokens: int | None) -> None:
        """`host` is a URL; `concurrency` limits the open connections."""
        self._path = urlsplit(host).path + "/generate"
        self._parameters = {} if max_new_tokens is None else {"parameters": {"max_new_tokens": max_new_tokens}}
        self._http = HTTPClient.from_url(
            host,
            concurrency=concurrency,
            connection_timeout=TIMEOUT_S,
            network_timeout=TIMEOUT_S,
            headers={"Content-Type": "application/json", "Cache-Control": "no-cache", **headers},
        )

    def generate(self, ref: str, source: str) -> Reply:
        """Request one answer from one variant. A failure is an outcome, not an exception."""
        body = json.dumps({"inputs": source, "model": ref, **self._parameters}).encode()
        status, content, tokens = 0, b"", None
        sent = time.perf_counter()
        try:
            response = self._http.request("POST", self._path, body=body)
            content = response.read()
            ended = time.perf_counter()
            status, tokens = response.status_code, response.get("x-generated-tokens")
        except gevent.GreenletExit:
            return Reply(sent=sent, ended=time.perf_counter(), outcome=UNFINISHED)
        except TimeoutError:
            return Reply(sent=sent, ended=time.perf_counter(), outcome=TIMEOUT)
        except (OSError, HTTPParseError):
            return Reply(sent=sent, ended=time.perf_counter(), outcome=CONNECTION)
        return _judged(Reply(sent=sent, ended=ended, status=status, size_bytes=len(content)), ref, content, tokens)

    def close(self) -> None:
        """Close the idle connections."""
        self._http.close()


def _judged(answer: Reply, ref: str, content: bytes, tokens: object) -> Reply:
    """Parse and check a response. Only an answer from the requested variant counts."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if answer.status != 200:
        kind = document.get("error_type") if isinstance(document, dict) else None
        if isinstance(kind, str) and _ERROR_TYPE.fullmatch(kind):
            return answer._replace(outcome=kind)
        return answer._replace(outcome=f"http_{answer.status}")
    try:
        if document["ref"] != ref or not isinstance(document["generated_text"], str):
            return answer._replace(outcome=BAD_ANSWER)
        timings = document["timings"]
        return answer._replace(
            queue_ms=_measured(timings["queue_ms"]),
            encode_ms=_measured(timings["encode_ms"]),
            decode_ms=_measured(timings["decode_ms"]),
            total_ms=_measured(timings["total_ms"]),
            generated_tokens=int(_measured(int(tokens))) if isinstance(tokens, str) else None,
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return answer._replace(outcome=BAD_ANSWER)


def _measured(value: Any) -> float:
    """Parse a plausible measurement: a finite number from 0 to _MOST.

    Raises:
        ValueError: it is not one.
    """
    number = float(value)
    if not (math.isfinite(number) and 0 <= number <= _MOST):
        raise ValueError(number)
    return number
