"""What HTTP costs over the engine: a request alone, and at saturation.

    python -m benchmarks.shaped_store --shape t5-small --out FOLDER
    python -m benchmarks.http_cost --store FOLDER/store --model t5-small@dense --model t5-small@pruned \
        --data FOLDER/workload.jsonl --out FILE

Needs two cores. The worker has the first one to itself; the API process and this client share the second. Alone: one
request after the other; the cost is what the client waited beyond the time that the engine reports for encoding and
decoding. Saturation: more requests in flight than the engine has slots, against the same engine in this process on the
first core, with all texts known beforehand. The two are run in turns, and a ratio is that of neighbours. The processor
time is that of the API process; `--before FOLDER` compares it with that of another checkout's server.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.end_to_end import Client, Server, sources_of
from benchmarks.environment import environment
from benchmarks.open_loop import send_all
from model_store.find import find_model
from model_store.store import Store
from nash.modeling.folders import load_tokenizer
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig

SLOTS = 32
IN_FLIGHT = 48  # so that a slot which becomes free finds a request that waits
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class _PinnedServer(Server):
    """A server of one model whose worker and API process have a core each."""

    def __init__(self, store: Path, model: str, port: int, checkout: Path | None = None) -> None:
        super().__init__(store, [f"{model},threads=1,slots={SLOTS}"], port)
        self._checkout = checkout

    def start(self) -> "subprocess.Popen[bytes]":
        path = {} if self._checkout is None else {"PYTHONPATH": str(self._checkout)}
        return subprocess.Popen(self.command, env={**os.environ, **path})

    def pin(self, engine: int, rest: int) -> None:
        """Give the worker and the rest their cores, threads that they have made included."""
        api = self.process.pid
        workers = [int(each.name) for each in Path("/proc").glob("[0-9]*") if _parent(each) == api]
        for process, core in ((api, rest), *((worker, engine) for worker in workers)):
            for thread in Path(f"/proc/{process}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {core})

    def cpu_s(self) -> float:
        """Processor time of the API process, without its worker, since it began."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description="HTTP's cost over the engine.")
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--model", action="append", required=True, help="a REF; repeat it")
    parser.add_argument("--data", type=Path, required=True, help="JSONL rows; their sources are sent")
    parser.add_argument("--requests", type=int, default=192, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="an earlier checkout, built in place")
    parser.add_argument("--port", type=int, default=18495)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two cores are needed: one for the engine, one for the API and the client")
    sources = sources_of(options.data, options.requests)
    result: dict[str, Any] = {
        "environment": environment(),
        "workload": {"data": options.data.name, "requests": len(sources), "rounds": options.rounds, "slots": SLOTS},
        "models": [_measure(options, model, sources, cores[0], cores[1]) for model in options.model],
    }
    print(json.dumps(result["models"], indent=2))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _measure(options: argparse.Namespace, model: str, sources: list[str], engine: int, rest: int) -> dict[str, Any]:
    now = _PinnedServer(options.store, model, options.port)
    servers = {"now": now}
    if options.before is not None:
        servers["before"] = _PinnedServer(options.store, model, options.port + 1, options.before)
    with ExitStack() as stack:
        for server in servers.values():
            stack.enter_context(server)
            server.pin(engine, rest)
        with _on(rest):
            alone = _alone(now, sources, options.rounds)
        processor_ms: dict[str, list[float]] = {name: [] for name in servers}
        offline = _Offline(options.store, model, sources, engine)
        ratios, per_s, offline_per_s = [], [], []
        for turn in range(-1, options.rounds):  # the first warms up
            by_itself = offline.run()
            for name, server in servers.items():
                with _on(rest):
                    before_s = server.cpu_s()
                    served = _saturated(server.port, sources)
                    used_ms = 1e3 * (server.cpu_s() - before_s) / len(sources)
                if turn < 0:
                    continue
                processor_ms[name].append(used_ms)
                if name == "now":
                    per_s.append(served)
                    offline_per_s.append(by_itself)
                    ratios.append(served / by_itself)
    return {
        "model": model,
        "alone": alone,
        "saturation": {
            "in_flight": IN_FLIGHT,
            "requests_per_s": round(statistics.median(per_s), 2),
            "offline_per_s": round(statistics.median(offline_per_s), 2),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
        },
        "api_processor_ms_a_request": {name: round(statistics.median(ms), 3) for name, ms in processor_ms.items()},
    }


def _alone(server: _PinnedServer, sources: list[str], rounds: int) -> dict[str, Any]:
    """What a request costs beyond the engine's time when it is the only one, in milliseconds."""
    costs, walls = [], []
    client = Client(server.port)
    for turn in range(rounds + 1):
        for source in sources[:: max(1, len(sources) // 60)]:
            wall_ms, answer = client.generate(source, None)
            if turn:
                timings = answer["timings"]
                walls.append(wall_ms)
                costs.append(wall_ms - timings["encode_ms"] - timings["decode_ms"])
    costs.sort()
    return {
        "requests": len(costs),
        "wall_p50_ms": round(statistics.median(walls), 3),
        "cost_p50_ms": round(statistics.median(costs), 3),
        "cost_p99_ms": round(costs[int(0.99 * len(costs))], 3),
    }


def _saturated(port: int, sources: list[str]) -> float:
    """Requests a second with `IN_FLIGHT` on the way, the time until the last one is answered included."""
    bodies = [json.dumps({"inputs": source}).encode() for source in sources]
    begun_s = time.perf_counter()
    answers = asyncio.run(send_all(port, bodies, in_flight=IN_FLIGHT))
    if any(answer.status != 200 for answer in answers):
        raise SystemExit(f"refused: {sorted({answer.status for answer in answers})}")
    return len(sources) / (time.perf_counter() - begun_s)


class _Offline:
    """The engine in a process of its own on the first core, without a server."""

    def __init__(self, store: Path, model: str, sources: list[str], core: int) -> None:
        found = find_model(model, Store(store)).model
        with _on(core):
            self._engine = Engine.load(found, EngineConfig(dtype="float32", threads=1, slots=SLOTS))
        self._core = core
        self._ids = load_tokenizer(found.folder)(sources).input_ids

    def run(self) -> float:
        """Texts a second."""
        with _on(self._core):
            begun_s = time.perf_counter()
            self._engine.generate(self._ids, self._engine.defaults.parameters)
            return len(self._ids) / (time.perf_counter() - begun_s)


@contextmanager
def _on(core: int) -> Iterator[None]:
    """Run this process on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


if __name__ == "__main__":
    main()
