"""What logs and traces cost: the processor time of the API process for a request, with and without them.

    python -m benchmarks.observability_cost --model ./examples/g2p/demo/model --data examples/g2p/workload.jsonl

Four servers run at once: a plain one, one with its access log in JSON, two that are traced, wholly and by a tenth.
Rounds of the same requests go to each in turns. A ratio compares two servers within a round; the quoted figure is the
median over the rounds. The traced ones send to a collector here that throws everything away.
"""

import argparse
import json
import os
import statistics
import subprocess
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.end_to_end import Client, Server, sources_of
from benchmarks.environment import environment

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class _Sink(BaseHTTPRequestHandler):
    """Takes everything and keeps nothing."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class _ObservedServer(Server):
    """A server with more flags and variables, whose processor time can be read."""

    def __init__(self, model: str, port: int, flags: list[str], variables: dict[str, str]) -> None:
        super().__init__(Path("store"), [model], port)
        self.command += [*flags]
        self._variables = variables

    def start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(self.command, stderr=subprocess.DEVNULL, env={**os.environ, **self._variables})

    def cpu_s(self) -> float:
        """Of the API process, without its workers, since it began."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description="The cost of logs and traces.")
    parser.add_argument("--model", required=True, help="a REF or a path")
    parser.add_argument("--data", type=Path, required=True, help="JSONL rows; their sources are sent")
    parser.add_argument("--requests", type=int, default=500, help="a round and server")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--port", type=int, default=18490)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sources = sources_of(options.data, options.requests)
    sink = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    log, traced = ["--log-format", "json", "--access-log"], f"http://127.0.0.1:{sink.server_port}"
    exporting = {"OTEL_EXPORTER_OTLP_ENDPOINT": traced}
    tenth = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}
    servers = {
        "plain": _ObservedServer(options.model, options.port, [], {}),
        "access log": _ObservedServer(options.model, options.port + 1, log, {}),
        "traced": _ObservedServer(options.model, options.port + 2, [], exporting),
        "one in ten traced": _ObservedServer(options.model, options.port + 3, [], exporting | tenth),
    }
    cost_ms: dict[str, list[float]] = {name: [] for name in servers}
    with ExitStack() as stack:
        for server in servers.values():
            stack.enter_context(server)
        for turn in range(-1, options.rounds):  # the first is a warm-up
            for name in list(servers) if turn % 2 else list(servers)[::-1]:
                client = Client(servers[name].port)  # a new one: the server has closed the last one's idle connection
                before_s = servers[name].cpu_s()
                for source in sources:
                    client.generate(source, None)
                if turn >= 0:
                    cost_ms[name].append(1e3 * (servers[name].cpu_s() - before_s) / len(sources))
    rows = [
        {
            "name": name,
            "api_cpu_ms_a_request": round(statistics.median(costs), 4),
            "more_than_plain_ms": round(
                statistics.median(a - b for a, b in zip(costs, cost_ms["plain"], strict=True)), 4
            ),
            "ratio": round(statistics.median(a / b for a, b in zip(costs, cost_ms["plain"], strict=True)), 3),
        }
        for name, costs in cost_ms.items()
    ]
    result = {
        "environment": environment(),
        "workload": {"requests": len(sources), "rounds": options.rounds, "model": options.model},
        "servers": rows,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for each in rows:
        print(f"{each['name']:18} {each['api_cpu_ms_a_request']:7.3f} ms of the API's processor, {each['ratio']:.2f}x")


if __name__ == "__main__":
    main()
