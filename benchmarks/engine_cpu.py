"""The engine beside transformers' generate and CTranslate2 on the CPU, and what pruning adds.

    python -m benchmarks.engine_cpu --out FILE

Speed does not depend on the weights, so they are random; lengths are forced; decoding is greedy. Every turn runs all
contenders one after the other, and a figure is the median over the turns. All get the same number of cores; CTranslate2
runs with one thread and with one per core, and the better result is quoted. The time of a step is the cost of one more
token: for the peers, a whole run minus a run that stops after one token, divided by the further tokens.

The memory-bandwidth limit of a step is the time to read all the weights that it needs once, at the bandwidth that plain
sums over a large array reach in the same run.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment
from benchmarks.peers.adapters import Generator, ctranslate2
from benchmarks.peers.adapters.generation import Transformers
from benchmarks.peers.timing import timed
from benchmarks.shapes import SHAPES, Shape, build, prune, save_with_tokenizer
from model_store.model.model import Model
from nash.measuring.latency import measure
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.native.arena import Arena

SETTLE_S = 0.4  # the previous contender's threads may spin for 0.2 s, waiting for work
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Run:
    """One generation of a whole batch, in milliseconds."""

    total_ms: float
    step_ms: float


@dataclass(frozen=True)
class Contender:
    """A generator to measure: `run(batch)` generates once."""

    name: str
    dtype: str
    threads: int
    run: Callable[[int], Run]


def engine(directory: Path, name: str, dtype: str, shape: Shape, threads: int) -> Contender:
    """Our engine, with the step time that it reports itself."""
    config = EngineConfig(
        dtype=dtype,
        threads=threads,
        slots=max(shape.batches),
        max_source_tokens=shape.source_tokens,
        max_new_tokens=shape.new_tokens,
        max_encode_tokens=max(shape.batches) * shape.source_tokens,
    )
    loaded = Engine.load(Model.open(directory), config)

    def run(batch: int) -> Run:
        workload = {"batch": batch, "source_tokens": shape.source_tokens, "repeats": 1}
        latency = measure(loaded, new_tokens=shape.new_tokens, **workload)
        return Run(latency.total_ms, latency.step_ms)

    return Contender(name, dtype, threads, run)


def _peer(name: str, generator: Generator, dtype: str, shape: Shape, threads: int) -> Contender:
    """A peer, timed from outside."""

    def run(batch: int) -> Run:
        sources = [
            [3 + (i * 7919 + j * 31) % (shape.vocab_size - 3) for j in range(shape.source_tokens)] for i in range(batch)
        ]
        timing, _ = timed(lambda tokens: generator.generate(sources, tokens), shape.new_tokens)
        return Run(timing.total_ms, timing.step_ms)

    return Contender(name, dtype, threads, run)


def _ctranslate2(directory: Path, dtype: str, shape: Shape, threads: int) -> Contender:
    converted = directory.with_name(f"{directory.name}-ctranslate2-{dtype}")
    if not converted.exists():
        ctranslate2.prepare(directory, converted, dtype)
    return _peer("CTranslate2", ctranslate2.load(directory, converted, dtype, threads), dtype, shape, threads)


def contenders(folder: Path, shape: Shape, threads: int) -> list[Contender]:
    """All contenders, loaded. CTranslate2 is an extra: `pip install "nash[bench]"`."""
    dense = build(shape)
    save_with_tokenizer(dense, folder / "dense", shape.vocab_size)
    prune(dense, 2).save_pretrained(folder / "pruned")
    found = [_peer("transformers", Transformers(dense, threads), "float32", shape, threads)]
    if find_spec("ctranslate2") is not None:
        for dtype in ("float32", "int8"):
            found += [_ctranslate2(folder / "dense", dtype, shape, count) for count in sorted({1, threads})]
    for dtype in BYTES:
        found.append(engine(folder / "dense", "engine, dense", dtype, shape, threads))
        found.append(engine(folder / "pruned", f"engine, 2 of {shape.layers}", dtype, shape, threads))
    return found


def bandwidth(threads: int, size_bytes: int = 2**28) -> float:
    """Bytes per second of sums over an array much larger than the caches; the best of a few runs."""
    torch.set_num_threads(threads)
    numbers = Arena().take(size_bytes // 4, torch.float32)
    numbers.fill_(1.0)
    best_s = float("inf")
    for _ in range(9):
        start_s = time.perf_counter()
        numbers.sum()
        best_s = min(best_s, time.perf_counter() - start_s)
    return size_bytes / best_s


def step_weights(shape: Shape, layers: int) -> int:
    """Number of weights that one decode step of a dense decoder of `layers` reads, including the vocabulary matrix."""
    inner = shape.num_heads * shape.d_kv
    return layers * (6 * shape.d_model * inner + 2 * shape.d_model * shape.d_ff) + shape.vocab_size * shape.d_model


def measure_shape(shape: Shape, threads: int, repeats: int) -> list[dict[str, Any]]:
    """One row per contender and batch."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        loaded = contenders(Path(folder), shape, threads)
        for batch in shape.batches:
            runs: list[list[Run]] = [[] for _ in loaded]
            for turn in range(repeats + 1):
                for contender, own in zip(loaded, runs, strict=True):
                    time.sleep(SETTLE_S)
                    run = contender.run(batch)
                    if turn > 0:
                        own.append(run)
            for contender, own in zip(loaded, runs, strict=True):
                rows.append(
                    {
                        "shape": shape.name,
                        "batch": batch,
                        "contender": contender.name,
                        "dtype": contender.dtype,
                        "threads": contender.threads,
                        "total_ms": statistics.median(run.total_ms for run in own),
                        "step_ms": statistics.median(run.step_ms for run in own),
                        "total_ms_turns": [round(run.total_ms, 3) for run in own],
                    }
                )
    return rows


def ratios(rows: list[dict[str, Any]], bandwidth_bytes_per_s: float) -> list[dict[str, Any]]:
    """Our dense model compared with the peers' best and with the bandwidth limit."""
    found = []
    for shape in SHAPES:
        for batch in shape.batches:
            here = [row for row in rows if (row["shape"], row["batch"]) == (shape.name, batch)]
            for dtype, size in BYTES.items():
                ours, pruned = (
                    next(row for row in here if row["contender"] == name and row["dtype"] == dtype)
                    for name in ("engine, dense", f"engine, 2 of {shape.layers}")
                )
                peers = [row for row in here if row["contender"] == "CTranslate2" and row["dtype"] == dtype]
                entry = {
                    "shape": shape.name,
                    "batch": batch,
                    "dtype": dtype,
                    "pruned_over_dense": ours["total_ms"] / pruned["total_ms"],
                    "over_transformers_float32": here[0]["total_ms"] / ours["total_ms"],
                    "share_of_bandwidth_limit": 1e3
                    * step_weights(shape, shape.layers)
                    * size
                    / bandwidth_bytes_per_s
                    / ours["step_ms"],
                }
                if peers:
                    entry["step_over_ctranslate2"] = min(row["step_ms"] for row in peers) / ours["step_ms"]
                    entry["over_ctranslate2"] = min(row["total_ms"] for row in peers) / ours["total_ms"]
                found.append(entry)
    return found


def main() -> None:
    """Measure, print tables, write the JSON."""
    parser = argparse.ArgumentParser(description="The engine beside transformers and CTranslate2 on the CPU.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    before = bandwidth(options.threads)
    rows = [row for shape in SHAPES for row in measure_shape(shape, options.threads, options.repeats)]
    read = max(before, bandwidth(options.threads))
    print(f"{'shape':<10}{'batch':>6}  {'contender':<16}{'dtype':<10}{'threads':>7}{'step ms':>9}{'total ms':>10}")
    for row in rows:
        print(
            f"{row['shape']:<10}{row['batch']:>6}  {row['contender']:<16}{row['dtype']:<10}{row['threads']:>7}"
            f"{row['step_ms']:>9.3f}{row['total_ms']:>10.2f}"
        )
    found = ratios(rows, read)
    print(f"\nmemory is read at {read / 1e9:.1f} GB/s; how many times as fast, and the share of the limit it sets")
    heads = f"{'CTranslate2':>12}{'its step':>10}{'transformers':>14}{'limit':>7}{'2 of 6':>8}"
    print(f"{'shape':<10}{'batch':>6}  {'dtype':<10}{heads}")
    for row in found:
        peer, step = (f"{row[key]:.2f}x" if key in row else "" for key in ("over_ctranslate2", "step_over_ctranslate2"))
        print(
            f"{row['shape']:<10}{row['batch']:>6}  {row['dtype']:<10}{peer:>12}{step:>10}"
            f"{row['over_transformers_float32']:>13.2f}x{row['share_of_bandwidth_limit']:>7.0%}"
            f"{row['pruned_over_dense']:>7.2f}x"
        )
    if options.out is not None:
        result = {"environment": environment(), "bandwidth_bytes_per_s": read, "ratios": found, "rows": rows}
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
