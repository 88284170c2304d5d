"""The gain of continuous batching: short requests beside long ones, and mixed lengths against static batches.

    python -m benchmarks.batching --out FILE

It runs one engine with a T5 of T5-small's shape, random weights and forced lengths. (1) Short requests arrive one after
the other while some long ones run; their latency is compared with that of the same requests alone. (2) The same
requests of mixed lengths run in the same order in three ways: admitted whenever a slot is free; in batches of all
slots that end with their longest answer, every row computed to that end, as transformers' generate does; and in such
batches without the rows that are finished.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment
from benchmarks.shapes import SHAPES, build
from model_store.model.model import Model
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.sequence import Sequence

SHORT = {"source_tokens": 16, "new_tokens": 8}
LONG = {"source_tokens": 256, "new_tokens": 256}
LONG_RUNNING = (1, 2, 4, 8)


class Requests:
    """Makes sequences of forced lengths, the same ones in every run."""

    def __init__(self, vocabulary: int) -> None:
        self._chance = random.Random(0)
        self._vocabulary = vocabulary
        self._next = 0

    def make(self, *, source_tokens: int, new_tokens: int) -> Sequence:
        """A new sequence with random tokens."""
        self._next += 1
        source = [self._chance.randrange(3, self._vocabulary) for _ in range(source_tokens)]
        return Sequence(
            id=self._next,
            source_ids=source,
            parameters=GenerationParameters(max_new_tokens=new_tokens, ignore_eos=True),
        )


def short_beside_long(engine: Engine, requests: Requests, long_running: int, repeats: int) -> dict[str, Any]:
    """Latency of short requests, in milliseconds, alone and beside `long_running` long ones."""
    alone, beside = [], []
    for _ in range(repeats):
        alone.append(_finish(engine, requests.make(**SHORT)))
    long: list[Sequence] = []
    for _ in range(repeats):
        running = sum(sequence.finished_s is None for sequence in long)
        for _ in range(long_running - running):
            long.append(requests.make(**LONG))
            engine.add(long[-1])
        engine.step()
        beside.append(_finish(engine, requests.make(**SHORT)))
    for sequence in long:
        engine.cancel(sequence.id)
    return {
        "short": SHORT,
        "long": LONG,
        "long_running": long_running,
        "alone_ms": statistics.median(alone),
        "beside_ms": statistics.median(beside),
        "ratio": statistics.median(beside) / statistics.median(alone),
        "waits_for_long_ms": _time_of_long(engine, requests),
    }


def _finish(engine: Engine, sequence: Sequence) -> float:
    engine.add(sequence)
    while sequence.finished_s is None:
        engine.step()
    return 1e3 * (sequence.finished_s - sequence.arrived_s)


def _time_of_long(engine: Engine, requests: Requests) -> float:
    """How long a short request would wait if a batch had to end first."""
    return _finish(engine, requests.make(**LONG))


def mixed_lengths(engine: Engine, requests: Requests, slots: int, count: int) -> dict[str, Any]:
    """Generated tokens per second of the same traffic, batched in each way; the better of two turns."""
    chance = random.Random(1)
    shapes = [
        {"source_tokens": chance.randint(8, 96), "new_tokens": min(200, int(chance.expovariate(1 / 40)) + 4)}
        for _ in range(count)
    ]
    tokens = sum(shape["new_tokens"] for shape in shapes)
    ways = {"continuous": count, "static": slots, "static_without_finished": slots}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(2):
        for way, size in ways.items():
            start_s = time.perf_counter()
            for first in range(0, count, size):
                batch = shapes[first : first + size]
                longest = max(shape["new_tokens"] for shape in batch)
                for shape in batch:
                    engine.add(requests.make(**(shape | {"new_tokens": longest} if way == "static" else shape)))
                while not engine.idle:
                    engine.step()
            seconds[way].append(time.perf_counter() - start_s)
    rates = {way: tokens / min(both) for way, both in seconds.items()}
    ratios = {way: rates["continuous"] / rates[way] for way in list(ways)[1:]}
    return {"requests": count, "tokens_per_s": rates, "continuous_over": ratios}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description="Continuous batching against what it replaces.")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shape = SHAPES[-1]
    with tempfile.TemporaryDirectory() as folder:
        build(shape).save_pretrained(folder)
        config = EngineConfig(dtype=options.dtype, threads=options.threads, slots=options.slots)
        engine = Engine.load(Model.open(Path(folder)), config)
    requests = Requests(shape.vocab_size)
    _finish(engine, requests.make(**SHORT))
    result = {
        "environment": environment(),
        "shape": shape.name,
        "engine": {"dtype": options.dtype, "threads": options.threads, "slots": options.slots},
        "short_beside_long": [short_beside_long(engine, requests, n, options.repeats) for n in LONG_RUNNING],
        "mixed_lengths": mixed_lengths(engine, requests, options.slots, options.requests),
    }
    print(json.dumps({key: result[key] for key in ("short_beside_long", "mixed_lengths")}, indent=2))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
