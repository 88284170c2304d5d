"""What a large caller does to a small one, and an overload to those who are let in, through `POST /generate`.

    python -m benchmarks.fairness --out FILE

It serves a model of g2p's shape with random weights and forced lengths. (1) A caller asks for one text after the other:
alone, and beside another one that keeps one request of 64 texts with 32 beams going, with batch priority and with the
same. The three are measured in turns; a ratio is that of a round's 95th percentiles. (2) Answers are made so long that
the model answers at most 30 requests a second, which is measured; then ten times as many arrive for a minute, at random
times, whether or not earlier ones were answered. Times count from the intended moment. Clients run on the same machine.
"""

import argparse
import asyncio
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.loopback import children_of, figures, memory_bytes, quantile, random_text, save_random, serving
from benchmarks.open_loop import Answer, send_at
from benchmarks.shapes import NAMED

SHAPE = NAMED["g2p"]
LARGE = {"texts": 64, "num_beams": 32}
LONG_ANSWER = 150  # tokens: 32 such answers at once are at most 30 a second on two cores
QUEUE_S = 2.0
SLO_S = 5.0  # for those who are let in: the queue and one long answer among 32


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description="A small caller beside a large one, and an overload.")
    parser.add_argument("--phase-s", type=float, default=8.0, help="how long the small caller asks in each phase")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--overload-s", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"environment": environment(), "shape": SHAPE.name}
    with tempfile.TemporaryDirectory() as folder:
        short, long = Path(folder, "short"), Path(folder, "long")
        save_random(SHAPE, short, SHAPE.new_tokens)
        save_random(SHAPE, long, LONG_ANSWER)
        with serving([short]) as (port, _):
            result["beside_a_large_request"] = beside_a_large_request(port, options.phase_s, options.rounds)
            print(json.dumps(result["beside_a_large_request"], indent=2))
        with serving([long], "--queue-s", str(QUEUE_S)) as (port, process):
            result["overload"] = asyncio.run(overload(port, process.pid, options.overload_s))
    text = json.dumps(result, indent=2)
    print(json.dumps(result["overload"], indent=2))
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")


def beside_a_large_request(port: int, phase_s: float, rounds: int) -> dict[str, Any]:
    """Times of a small caller, alone and beside a large one, in milliseconds."""
    phases: dict[str, list[list[float]]] = {"alone": [], "beside_batch_priority": [], "beside_same_priority": []}
    large: dict[str, list[float]] = {phase: [] for phase in ("by_itself", *list(phases)[1:])}
    for turn in range(rounds + 1):
        for phase, samples in phases.items():
            with _large_caller(port, phase):
                before = _answered(port)
                times = _ask(port, phase_s if turn else 1.0)
                texts = (_answered(port) - before - len(times)) / phase_s
            if turn:  # the first round warms up
                samples.append(times)
                if phase in large:
                    large[phase].append(texts)
        with _large_caller(port, "beside_same_priority"):
            before = _answered(port)
            time.sleep(phase_s if turn else 1.0)
            texts = (_answered(port) - before) / phase_s
        if turn:
            large["by_itself"].append(texts)
    alone = phases.pop("alone")
    result: dict[str, Any] = {
        "small": {"phase_s": phase_s, "rounds": rounds, "new_tokens": SHAPE.new_tokens},
        "large": LARGE
        | {"texts_a_second": {phase: round(statistics.median(rates), 2) for phase, rates in large.items()}},
        "alone": figures(list(chain(*alone))),
    }
    for phase, samples in phases.items():
        ratios = [
            quantile(beside, 0.95) / quantile(by_itself, 0.95) for beside, by_itself in zip(samples, alone, strict=True)
        ]
        result[phase] = figures(list(chain(*samples))) | {
            "p95_ratio": statistics.median(ratios),
            "p95_ratio_rounds": [round(ratio, 3) for ratio in ratios],
        }
    return result


@contextmanager
def _large_caller(port: int, phase: str) -> Iterator[None]:
    """Keep a large request going, from a process of its own."""
    if phase == "alone":
        yield
        return
    chance = random.Random(1)
    priority = "batch" if phase == "beside_batch_priority" else "interactive"
    large = {
        "inputs": [random_text(SHAPE, chance) for _ in range(LARGE["texts"])],
        "parameters": {"num_beams": LARGE["num_beams"], "priority": priority},
    }
    command = [sys.executable, "-m", "benchmarks.large_caller", str(port), json.dumps(large)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)  # its first texts run
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def _answered(port: int) -> float:
    """How many texts were answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode("utf-8").splitlines()
    connection.close()
    found = [line for line in lines if line.startswith("nash_requests_total{") and 'outcome="ok"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def _ask(port: int, seconds: float) -> list[float]:
    """Ask for one text after the other; returns each one's time in milliseconds."""
    chance, connection = random.Random(0), http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    times: list[float] = []
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        body = json.dumps({"inputs": random_text(SHAPE, chance)})
        begun_s = time.perf_counter()
        connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        times.append(1e3 * (time.perf_counter() - begun_s))
        if response.status != 200:
            raise SystemExit(f"answered {response.status}: {answer!r}")
    connection.close()
    return times


async def overload(port: int, pid: int, seconds: float) -> dict[str, Any]:
    """What those who are let in, and those who are refused, see at ten times the capacity."""
    chance = random.Random(0)
    capacity = await _capacity(port, chance)
    rate = 10 * capacity
    sent = asyncio.create_task(send_at(port, _arrivals(rate, seconds, chance)))
    memory: list[int] = []
    while not sent.done():
        memory.append(sum(memory_bytes(each, "VmRSS") for each in (pid, *children_of(pid))))
        await asyncio.wait([sent], timeout=1.0)
    answers, lags_s = await sent
    admitted = [each for each in answers if each.status == 200]
    refused = [each for each in answers if each.status == 429]
    settled = memory[min(10, len(memory) // 2) :]
    return {
        "new_tokens": LONG_ANSWER,
        "capacity_requests_a_second": round(capacity, 2),
        "offered_requests_a_second": round(rate, 1),
        "seconds": seconds,
        "queue_s": QUEUE_S,
        "slo_s": SLO_S,
        "requests": len(answers),
        "admitted": figures([1e3 * each.seconds for each in admitted])
        | {
            "a_second": round(len(admitted) / seconds, 2),
            "within_slo": sum(each.seconds <= SLO_S for each in admitted) / len(admitted),
        },
        "refused": figures([1e3 * each.seconds for each in refused])
        | {"retry_after_s": [min(each.retry_after_s for each in refused), max(each.retry_after_s for each in refused)]},
        "others": sorted({each.status for each in answers} - {200, 429}),
        "schedule_lag_ms": figures([1e3 * lag_s for lag_s in lags_s]),
        "memory_mb": {"after_ten_seconds": settled[0] / 1e6, "most_afterwards": max(settled) / 1e6},
        "memory_growth": max(settled) / settled[0] - 1,
    }


async def _capacity(port: int, chance: random.Random) -> float:
    """Answers a second when all slots are always taken."""
    count = 4 * 32
    begun_s = time.perf_counter()
    answers: list[Answer] = []
    for _ in range(2):
        wave, _ = await send_at(port, [(0.0, _body(chance)) for _ in range(count // 2)])
        answers += wave
    return sum(each.status == 200 for each in answers) / (time.perf_counter() - begun_s)


def _arrivals(rate: float, seconds: float, chance: random.Random) -> list[tuple[float, bytes]]:
    at_s, arrivals = chance.expovariate(rate), []
    while at_s < seconds:
        arrivals.append((at_s, _body(chance)))
        at_s += chance.expovariate(rate)
    return arrivals


def _body(chance: random.Random) -> bytes:
    return json.dumps({"inputs": random_text(SHAPE, chance)}).encode("ascii")


if __name__ == "__main__":
    main()
