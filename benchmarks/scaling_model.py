"""The expected gain of more cores: a theoretical model of a decode step, not a measurement.

    python -m benchmarks.scaling_model

A step is a sequence of phases with a barrier after each. A phase lasts as long as its longest share: the time to read
the weights at one core's rate, or to do the multiply-adds at one core's rate, whichever is slower. The rates are fitted
to two measured cores of a Zen 4 AMD EPYC. The cost of a barrier among many cores is an assumption: one transfer of a
cache line for each arrival.
"""

import argparse
import math
from dataclasses import dataclass

from benchmarks.shapes import NAMED, Shape

TILE, BLOCK = 32, 8  # outputs and rows that are not divided further
OWN_ROWS = 4  # up to this many rows need no barrier after the conversion of inputs
GROUP = 8  # threads that meet at the first level of a barrier
BYTES = {"int8": 1.0, "float32": 4.0}
READ_BYTES_PER_NS = 38.0  # by one core, from the caches and memory
MULTIPLY_ADDS_PER_NS = {"int8": 100.0, "float32": 30.0}  # by one core
MEMORY_BYTES_PER_NS = 300.0  # of a socket with 12 channels, for weights that do not fit in its caches
CACHE_BYTES_PER_CORE = 4e6  # a core's share of L2 and L3
LINE_NS, FAR_LINE_NS = 40.0, 120.0  # a cache line between two cores that share a cache, and that do not
CHOICE_PER_NS = 10.0  # logits that thread 0 searches for the largest


@dataclass(frozen=True)
class Phase:
    """Products between two barriers."""

    outputs: int
    inputs: int
    rows: int


def phases(shape: Shape, batch: int) -> list[Phase]:
    """The products of a decode step."""
    inner = shape.num_heads * shape.d_kv
    layer = [
        Phase(3 * inner, shape.d_model, batch),
        Phase(shape.d_model, inner, batch),
        Phase(inner, shape.d_model, batch),
        Phase(shape.d_model, inner, batch),
        Phase(shape.d_ff, shape.d_model, batch),
        Phase(shape.d_model, shape.d_ff, batch),
    ]
    return layer * shape.layers + [Phase(shape.vocab_size, shape.d_model, batch)]


def barriers(shape: Shape, batch: int) -> int:
    """Barriers of a decode step: after each product and each attention, and where rows are converted together."""
    products = 6 * shape.layers + 1
    return products + 2 * shape.layers + 1 + (products if batch > OWN_ROWS else 0)


def longest_share(phase: Phase, threads: int) -> float:
    """The busiest thread's share of all outputs: in tiles, and in blocks of rows if tiles do not divide evenly."""
    tiles, blocks = -(-phase.outputs // TILE), -(-phase.rows // BLOCK)
    groups = [1, *(1 << i for i in range(1, 12) if tiles % threads and 1 << i <= blocks)]
    return min(math.ceil(tiles * count / threads) / (tiles * count) for count in groups)


def barrier_ns(threads: int) -> float:
    """Time of a barrier: arrivals are serial, and the release is one transfer, within a group and between groups."""
    if threads == 1:
        return 0.0
    near, far = min(threads, GROUP), -(-threads // GROUP)
    return (near + 1) * LINE_NS + ((far + 1) * FAR_LINE_NS if far > 1 else 0.0)


def step_ns(shape: Shape, batch: int, dtype: str, threads: int) -> float:
    """Time of one decode step without attention."""
    size = BYTES[dtype]
    weights = sum(size * phase.outputs * phase.inputs for phase in phases(shape, batch))
    cached = weights <= CACHE_BYTES_PER_CORE * threads
    total = barriers(shape, batch) * barrier_ns(threads) + batch * shape.vocab_size / CHOICE_PER_NS
    for phase in phases(shape, batch):
        count, share = phase.outputs * phase.inputs, longest_share(phase, threads)
        reading_ns = size * count * share / READ_BYTES_PER_NS
        if not cached:
            reading_ns = max(reading_ns, size * count / MEMORY_BYTES_PER_NS)
        total += max(reading_ns, phase.rows * count * share / MULTIPLY_ADDS_PER_NS[dtype])
    return total


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description="What more cores should give, by a model on paper.").parse_args()
    cores = (1, 2, 8, 16, 32, 64)
    print("predicted milliseconds of a decode step; the best count of threads up to so many cores in brackets")
    print(f"{'shape':<10}{'dtype':<9}{'batch':>5}" + "".join(f"{count:>14}" for count in cores))
    for name in ("t5-small", "t5-base"):
        for dtype in BYTES:
            for batch in (1, 8, 32):
                cells = []
                for count in cores:
                    halved = [count >> i for i in range(7) if count >> i]
                    best = min(halved, key=lambda threads: step_ns(NAMED[name], batch, dtype, threads))
                    cells.append(f"{step_ns(NAMED[name], batch, dtype, best) / 1e6:8.3f} ({best:>2})")
                print(f"{name:<10}{dtype:<9}{batch:>5}" + "".join(f"{cell:>14}" for cell in cells))


if __name__ == "__main__":
    main()
