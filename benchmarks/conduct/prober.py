"""Asks for one thing after the other and tells how long each took.

    python -m benchmarks.conduct.prober PORT SECONDS METHOD PATH [BODY]

A process of its own, with little to import, so that it does not share an interpreter with whoever troubles the server.
It prints one JSON object: the times of the answers with status 200 in milliseconds, and how many others there were.
"""

import http.client
import json
import sys
import time
from collections import Counter

PAUSE_S = 0.01


def main() -> None:
    """Ask until the time is over."""
    port, seconds, method, path, *rest = sys.argv[1:]
    body = rest[0] if rest else None
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    times_ms: list[float] = []
    failures: Counter[str] = Counter()
    end_s = time.perf_counter() + float(seconds)
    while time.perf_counter() < end_s:
        begun_s = time.perf_counter()
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            failures[type(error).__name__] += 1
            connection.close()
        else:
            if response.status == 200:
                times_ms.append(1e3 * (time.perf_counter() - begun_s))
            else:
                failures[str(response.status)] += 1
        time.sleep(PAUSE_S)
    print(json.dumps({"times_ms": times_ms, "failures": failures}))


if __name__ == "__main__":
    main()
