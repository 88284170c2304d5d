"""A short request that runs while a long source arrives, and the long request's wait.

    python -m benchmarks.long_source --out FILE

The model has T5-base's shape and random weights; lengths are forced. One request decodes; then a source of 1,024 tokens
arrives. The benchmark compares, in turn, the running request's step times alone and beside the long source, and the
long request's time to its first token alone and beside the running request. It repeats this with sources encoded at
once instead of in slices.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.shapes import T5_BASE, build, save_with_tokenizer
from model_store.model.model import Model
from server.engine import source_queue
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.sequence import Sequence

SHORT_TOKENS, LONG_TOKENS = 64, 1024
STEPS_BEFORE = 8  # of the short request, before the long one arrives
STEPS_ALONE = 200  # about as many as beside the long one, so that the longest steps are comparable


# Figures of a run's sorted steps. Each is divided by the same figure of the steps alone.
STEPS: dict[str, Callable[[list[float]], float]] = {
    "median": statistics.median,
    "p95": lambda steps: steps[int(0.95 * (len(steps) - 1))],
    "longest": lambda steps: steps[-1],
}


@dataclass(frozen=True)
class Beside:
    """One run of both requests, in milliseconds."""

    gaps_ms: list[float]  # of the short request's steps, from the long request's arrival to its first token
    first_token_ms: float  # of the long request, from its arrival


def _sequence(number: int, tokens: int, new_tokens: int) -> Sequence:
    parameters = GenerationParameters(max_new_tokens=new_tokens, ignore_eos=True)
    return Sequence(id=number, source_ids=[3 + (i * 7919) % 30_000 for i in range(tokens)], parameters=parameters)


def _finish(engine: Engine, numbers: list[int]) -> None:
    for number in numbers:
        engine.cancel(number)
    assert engine.idle


def alone(engine: Engine, steps: int) -> tuple[list[float], float]:
    """A short request's step times and a long request's time to its first token, in milliseconds, each alone."""
    engine.add(_sequence(0, SHORT_TOKENS, 500))
    gaps_ms = []
    for step in range(steps + STEPS_BEFORE):
        begun_s = time.perf_counter()
        engine.step()
        if step >= STEPS_BEFORE:
            gaps_ms.append(1e3 * (time.perf_counter() - begun_s))
    _finish(engine, [0])
    begun_s = time.perf_counter()
    engine.add(_sequence(1, LONG_TOKENS, 4))
    assert any(event.sequence_id == 1 for event in engine.step())
    first_ms = 1e3 * (time.perf_counter() - begun_s)
    _finish(engine, [1])
    return gaps_ms, first_ms


def beside(engine: Engine) -> Beside:
    """Add a long source while a short request runs."""
    engine.add(_sequence(0, SHORT_TOKENS, 500))
    for _ in range(STEPS_BEFORE):
        engine.step()
    arrived_s = time.perf_counter()
    engine.add(_sequence(1, LONG_TOKENS, 4))
    gaps_ms = []
    while True:
        begun_s = time.perf_counter()
        events = engine.step()
        gaps_ms.append(1e3 * (time.perf_counter() - begun_s))
        if any(event.sequence_id == 1 for event in events):
            break
    first_ms = 1e3 * (time.perf_counter() - arrived_s)
    _finish(engine, [0, 1])
    return Beside(gaps_ms, first_ms)


def measure(directory: Path, dtype: str, threads: int | None, turns: int) -> dict[str, Any]:
    """The medians over the turns."""
    config = EngineConfig(
        dtype=dtype,
        threads=threads,
        slots=4,
        max_source_tokens=LONG_TOKENS,
        max_new_tokens=512,
        ahead_s=0.0,  # one step at a time, to time each of them
    )
    engine = Engine.load(Model.open(directory), config)
    alone(engine, 8)
    steps_ms: dict[str, list[float]] = {name: [] for name in STEPS}
    firsts_ms, sliced, whole = [], [], []
    for _ in range(turns):
        gaps_ms, first_ms = alone(engine, STEPS_ALONE)
        for name, choose in STEPS.items():
            steps_ms[name].append(choose(sorted(gaps_ms)))
        firsts_ms.append(first_ms)
        sliced.append(beside(engine))
        pause_s, source_queue.LONGEST_PAUSE_S = source_queue.LONGEST_PAUSE_S, float("inf")
        whole.append(beside(engine))
        source_queue.LONGEST_PAUSE_S = pause_s
    alone_ms = {name: statistics.median(each) for name, each in steps_ms.items()}
    first_ms = statistics.median(firsts_ms)

    def figures(runs: list[Beside]) -> dict[str, float]:
        # The last step has both requests, and the long request's first attention over its whole source.
        gaps = [sorted(run.gaps_ms[:-1] or run.gaps_ms) for run in runs]
        return {
            **{
                f"{name}_step_over_alone": statistics.median(map(choose, gaps)) / alone_ms[name]
                for name, choose in STEPS.items()
            },
            "first_token_over_alone": statistics.median(run.first_token_ms for run in runs) / first_ms,
        }

    return {
        "dtype": dtype,
        "steps_alone_ms": alone_ms,
        "first_token_alone_ms": first_ms,
        "in_slices": figures(sliced),
        "at_once": figures(whole),
    }


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description="A short request beside a long source.")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_with_tokenizer(build(T5_BASE), Path(folder) / "dense", T5_BASE.vocab_size)
        rows = [
            measure(Path(folder) / "dense", dtype, options.threads, options.turns)
            for dtype in options.dtype or ["int8", "float32"]
        ]
    print(json.dumps(rows, indent=2))
    if options.out is not None:
        result = {"environment": environment(), "short": SHORT_TOKENS, "long": LONG_TOKENS, "rows": rows}
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
