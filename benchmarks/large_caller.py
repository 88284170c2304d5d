"""Keeps one large request going until it is ended.

    python -m benchmarks.large_caller PORT '{"inputs": ["...", ...], "parameters": {...}}'

A process of its own, so that it does not share an interpreter with the caller that is measured. It prints a line when
it begins.
"""

import http.client
import sys


def main() -> None:
    """Ask again and again."""
    port, body = int(sys.argv[1]), sys.argv[2]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    print("begins", flush=True)
    while True:
        connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise SystemExit(f"answered {response.status}: {answer!r}")


if __name__ == "__main__":
    main()
