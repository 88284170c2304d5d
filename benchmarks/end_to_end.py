"""The gain of pruning through the server: the same words are sent to each variant by `POST /generate`, in turns.

    python -m benchmarks.end_to_end --store STORE --model g2p@dense --model g2p@pruned --data test.jsonl --out FILE

It starts the server with the given models; the first is the baseline. Each round sends the same words to every variant,
one variant after the other. All rounds are run with one request at a time and then with 16 in flight. A ratio compares
two variants within a round; the quoted figure is the median over the rounds. The client runs on the same machine.
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.environment import environment

CONCURRENCY = (1, 16)


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description="Dense against pruned through POST /generate.")
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--model", action="append", required=True, help="a REF; the first is the baseline")
    parser.add_argument("--data", type=Path, required=True, help="JSONL rows; their sources are sent")
    parser.add_argument("--words", type=int, default=200, help="requests a round and variant")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--port", type=int, default=18480)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sources = sources_of(options.data, options.words)
    with Server(options.store, options.model, options.port):
        result = {
            "environment": environment(),
            "workload": {"requests": len(sources), "rounds": options.rounds, "data": options.data.name},
            "baseline": options.model[0],
            "concurrency": [
                _measure(options.port, options.model, sources, concurrency, options.rounds)
                for concurrency in CONCURRENCY
            ],
        }
    text = json.dumps(result, indent=2)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    _print_table(result)


def sources_of(path: Path, count: int) -> list[str]:
    """So many sources of a file's rows."""
    rows = [json.loads(line)["source"] for line in path.read_text(encoding="utf-8").split("\n") if line]
    step = max(1, len(rows) // count)  # the file is sorted, so take words from all of it
    return list(islice(rows[::step], count))


class Server:
    """A server of the models on a loopback port, for the duration of a `with` block."""

    def __init__(self, store: Path, models: list[str], port: int) -> None:
        arguments = [argument for model in models for argument in ("--model", f"{model},dtype=float32")]
        command = [sys.executable, "-m", "server", "--store", str(store), "--port", str(port), *arguments]
        self.command = command
        self.port = port

    def __enter__(self) -> None:
        self.process = self.start()
        deadline_s = time.monotonic() + 120
        while time.monotonic() < deadline_s and self.process.poll() is None:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health/ready")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise SystemExit("the server did not get ready")

    def start(self) -> "subprocess.Popen[bytes]":
        """Start its process."""
        return subprocess.Popen(self.command)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)


class Client(threading.local):
    """One connection per thread."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def generate(self, source: str, model: str | None) -> tuple[float, dict[str, Any]]:
        """The request's wall time in milliseconds, and the answer."""
        body = json.dumps({"inputs": source} if model is None else {"inputs": source, "model": model})
        start_s = time.perf_counter()
        self.connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        response = self.connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise SystemExit(f"{model} answered {response.status}: {answer}")
        return 1e3 * (time.perf_counter() - start_s), answer


def _measure(port: int, models: list[str], sources: list[str], concurrency: int, rounds: int) -> dict[str, Any]:
    client = Client(port)
    samples: dict[str, list[dict[str, float]]] = {model: [] for model in models}
    with ThreadPoolExecutor(concurrency) as pool:

        def round_of(model: str) -> dict[str, float]:
            start_s = time.perf_counter()
            answers = list(pool.map(client.generate, sources, islice(cycle([model]), len(sources))))
            elapsed_s = time.perf_counter() - start_s
            latencies = sorted(ms for ms, _ in answers)
            return {
                "p50_ms": statistics.median(latencies),
                "p95_ms": latencies[int(0.95 * len(latencies))],
                "mean_ms": statistics.fmean(latencies),
                "engine_ms": statistics.fmean(a["timings"]["total_ms"] for _, a in answers),
                "requests_per_s": len(sources) / elapsed_s,
            }

        for model in models:
            round_of(model)  # warm up
        for turn in range(rounds):
            for model in models if turn % 2 == 0 else models[::-1]:
                samples[model].append(round_of(model))
    baseline = samples[models[0]]
    variants = []
    for model in models:
        ratios = [b["mean_ms"] / s["mean_ms"] for b, s in zip(baseline, samples[model], strict=True)]
        variants.append(
            {
                "ref": model,
                **{key: statistics.median(s[key] for s in samples[model]) for key in samples[model][0]},
                "speedup": statistics.median(ratios),
                "speedup_rounds": [round(r, 3) for r in ratios],
            }
        )
    return {"concurrency": concurrency, "variants": variants}


def _print_table(result: dict[str, Any]) -> None:
    print(f"{'in flight':>9}  {'model':<16}{'p50 ms':>9}{'p95 ms':>9}{'engine ms':>11}{'req/s':>9}{'speed-up':>10}")
    for level in result["concurrency"]:
        for v in level["variants"]:
            print(
                f"{level['concurrency']:>9}  {v['ref']:<16}{v['p50_ms']:>9.2f}{v['p95_ms']:>9.2f}"
                f"{v['engine_ms']:>11.2f}{v['requests_per_s']:>9.1f}{v['speedup']:>9.2f}x"
            )


if __name__ == "__main__":
    main()
