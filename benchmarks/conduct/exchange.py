"""One request and how it ended, as a client sees it: every request is to have exactly one end."""

import http.client
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

OK, CANCELLED = "ok", "cancelled"
TIMEOUT_S = 150.0  # longer than the server lets any request take


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A request's end. Times are of `time.perf_counter`."""

    begun_s: float
    ended_s: float
    first_s: float | None  # when the first event of a stream came that is no error
    outcome: str  # ok, cancelled, the status of a refusal, or what went wrong
    generations: int  # that the server counts for it


class Caller:
    """One connection, which is kept as long as all goes well. For one thread."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)

    def ask(
        self, path: str, body: Mapping[str, Any], *, leave_after: int | None = None, generations: int = 1
    ) -> Exchange:
        """POST the body; a client that leaves closes the connection after so many events, or before an answer."""
        begun_s = time.perf_counter()
        first_s: float | None = None
        try:
            self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            if leave_after is not None and not body.get("stream"):
                outcome = CANCELLED
            else:
                response = self._connection.getresponse()
                if response.status != 200:
                    outcome = str(response.status)
                elif body.get("stream"):
                    first_s, outcome = _read_stream(
                        response, leave_after, "results" if path == "/compare" else "generated_text"
                    )
                else:
                    json.loads(response.read())
                    outcome = OK
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcome = type(error).__name__
        if outcome != OK:
            self._connection.close()
        return Exchange(
            begun_s=begun_s, ended_s=time.perf_counter(), first_s=first_s, outcome=outcome, generations=generations
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _read_stream(
    response: http.client.HTTPResponse, leave_after: int | None, last_key: str
) -> tuple[float | None, str]:
    first_s: float | None = None
    ends: list[str] = []
    events = 0
    for line in response:
        if not line.startswith(b"data:"):
            continue
        events += 1
        if (end := _end(line.removeprefix(b"data:").strip(), last_key)) is not None:
            ends.append(end)
        if first_s is None and end in (None, OK):
            first_s = time.perf_counter()
        if events == leave_after and not ends:
            return first_s, CANCELLED
    return first_s, ends[0] if len(ends) == 1 else f"{len(ends)} ends"


def _end(data: bytes, last_key: str) -> str | None:
    """What an event says about the end of its stream; None if it is not the last one."""
    if data == b"[DONE]":
        return OK
    event = json.loads(data)
    if "error" in event:
        return "error event"
    return OK if event.get(last_key) is not None else None


def outcomes(exchanges: Iterable[Exchange]) -> dict[str, int]:
    """How many requests ended in which way."""
    return dict(sorted(Counter(each.outcome for each in exchanges).items()))


def counted(port: int, metric: str = "nash_requests_total") -> float:
    """The sum of a metric of the server over all its labels."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode("utf-8").splitlines()
    connection.close()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((metric + "{", metric + " ")))


def control(port: int, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
    """Send one request of an operator; returns its status and the answer's JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
