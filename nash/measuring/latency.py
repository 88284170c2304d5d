"""A model's latency, measured on the engine that will serve it."""

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch

from model_store.model.model import Model
from nash.measuring.figures import Latency
from nash.run.progress import Watch
from server.engine.engine import Engine
from server.engine.errors import EngineError
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.sequence import Sequence as Generation

# The pause before every measured run. On a busy machine a thread that has just slept gets a whole time slice. Without
# the pause a slow model was interrupted in nearly every run, a fast one in few, and their ratio was absurd.
_REST_S = 0.001
_MISSED = 0.05  # how often the interval of a speed-up may miss it


FAST = 0.1  # the share of runs that count as fast: closest to a model's time on an idle machine


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The load under which a model is measured, and how the engine computes it."""

    batch: int  # sources that arrive together
    source_tokens: int  # of each
    new_tokens: int  # of each answer
    dtype: str = "float32"
    threads: int | None = None  # None: the engine's own choice
    device: str = "cpu"

    @property
    def config(self) -> EngineConfig:
        """The configuration of an engine for exactly this workload."""
        return limited(EngineConfig(dtype=self.dtype, device=self.device, threads=self.threads), self)

    def __str__(self) -> str:
        requests = "one request" if self.batch == 1 else f"{self.batch} requests together"
        return f"{requests}, {self.source_tokens} tokens in and {self.new_tokens} out, {self.dtype} on {self.device}"


def limited(config: EngineConfig, workload: Workload) -> EngineConfig:
    """The configuration with its limits set to the workload."""
    return dataclasses.replace(
        config,
        slots=workload.batch,
        max_source_tokens=workload.source_tokens,
        max_new_tokens=workload.new_tokens,
        max_encode_tokens=workload.batch * workload.source_tokens,
    )


def measure(model: Engine | Model, *, batch: int, source_tokens: int, new_tokens: int, repeats: int = 5) -> Latency:
    """Latency of one loaded engine, or of a model, which is loaded in float32 for the workload."""
    return measure_side_by_side(
        [model], batch=batch, source_tokens=source_tokens, new_tokens=new_tokens, repeats=repeats
    )[0]


def measure_side_by_side(
    models: Sequence[Engine | Model],
    *,
    batch: int,
    source_tokens: int,
    new_tokens: int,
    repeats: int = 5,
    config: EngineConfig | None = None,
    watch: Watch | None = None,
) -> list[Latency]:
    """Latency of several models, in the order given, run in turn (A B A B) so that other load affects all of them.

    Models are loaded with `config`, its limits set to the workload; engines are measured as they are.

    Raises:
        server.engine.errors.EngineError: a model cannot be loaded, or an engine's limits are below the workload.
    """
    workload = Workload(batch=batch, source_tokens=source_tokens, new_tokens=new_tokens)
    config = limited(config or EngineConfig(), workload)
    engines = [m if isinstance(m, Engine) else Engine.load(m, config) for m in models]
    return [quantile(runs, 0.5) for runs in measure_turns(engines, workload, repeats, watch)]


def measure_turns(
    engines: Sequence[Engine], workload: Workload, repeats: int, watch: Watch | None = None
) -> list[list[Latency]]:
    """Every run of every engine, in turn: the n-th runs of all engines are adjacent in time.

    Every engine has one warm-up run. `watch` receives the number of finished turns and of all turns.
    """
    parameters = GenerationParameters(max_new_tokens=workload.new_tokens, ignore_eos=True)
    runs: list[list[Latency]] = [[] for _ in engines]
    for repeat in range(repeats + 1):
        for engine, latencies in zip(engines, runs, strict=True):
            time.sleep(_REST_S)
            latency = _run(engine, _sources(engine, workload.batch, workload.source_tokens), parameters)
            if repeat > 0:
                latencies.append(latency)
        if watch is not None:
            watch(repeat, repeats)
    return runs


def measure_for(
    engines: Sequence[Engine],
    workload: Workload,
    seconds: float,
    *,
    fewest: int,
    most: int,
    watch: Watch | None = None,
) -> list[list[Latency]]:
    """`measure_turns` with about as many turns as fit into `seconds`, between `fewest` and `most`."""
    turn_s = sum(latency.total_ms for [latency] in measure_turns(engines, workload, 1)) / 1e3
    return measure_turns(engines, workload, min(max(int(seconds / turn_s), fewest), most), watch)


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Restore torch's thread count, which an engine sets for the whole process: training may follow."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_workload(model: Model, workload: Workload) -> None:
    """Run a workload once, to learn before hours of training whether the engine refuses it.

    Raises:
        server.engine.errors.EngineError: the workload cannot be run.
    """
    with torch_threads_kept():
        measure_turns([Engine.load(model, workload.config)], workload, 0)


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times faster one model is than another, from pairs of adjacent runs."""

    median: float  # of the pairs' ratios
    interval: tuple[float, float]  # holds the true median with a probability of at least 95 %
    quartiles: tuple[float, float]  # the middle half of the ratios

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """The speed-up that `document` was made from by `asdict`."""
        return cls(
            median=document["median"], interval=tuple(document["interval"]), quartiles=tuple(document["quartiles"])
        )


def paired_speedup(slow: Sequence[Latency], fast: Sequence[Latency]) -> Speedup:
    """The speed-up over all pairs: other work on the machine hits both runs of a pair, or makes that pair an outlier.

    The interval lies between two order statistics, chosen by the binomial distribution (no assumption on the noise).
    """
    ratios = sorted(a.total_ms / b.total_ms for a, b in zip(slow, fast, strict=True))
    low = next((k for k in range(len(ratios) // 2, 0, -1) if 2 * _binomial_below(k, len(ratios)) <= _MISSED), 0)
    return Speedup(
        median=statistics.median(ratios),
        interval=(ratios[max(low - 1, 0)], ratios[len(ratios) - max(low, 1)]),
        quartiles=(_quantile(ratios, 0.25), _quantile(ratios, 0.75)),
    )


def _binomial_below(k: int, n: int) -> float:
    """P(fewer than k of n ratios are below the true median)."""
    return float(sum(math.comb(n, i) for i in range(k)) / 2**n)


def _sources(engine: Engine, batch: int, source_tokens: int) -> list[list[int]]:
    """Random ordinary tokens; equal calls give equal sources."""
    special = {engine.spec.pad_id, engine.spec.eos_id, engine.spec.decoder_start_id}
    ordinary = [token for token in range(engine.spec.vocab_size) if token not in special]
    generator = random.Random(batch * source_tokens)
    return [generator.choices(ordinary, k=source_tokens) for _ in range(batch)]


def _run(engine: Engine, sources: list[list[int]], parameters: GenerationParameters) -> Latency:
    generations = [Generation(id=i, source_ids=source, parameters=parameters) for i, source in enumerate(sources)]
    for generation in generations:
        engine.add(generation)
    encode_s, steps_s = 0.0, []
    started_s = time.perf_counter()
    while not engine.idle:
        engine.step()
        encode_s += engine.step_stats.encode_s
        if engine.step_stats.batch_size == len(sources):
            steps_s += [engine.step_stats.decode_s / engine.step_stats.steps] * engine.step_stats.steps
    total_s = time.perf_counter() - started_s
    for generation in generations:
        if generation.error is not None:  # a request that ends early would look fast
            raise EngineError(f"nothing can be measured: {generation.error}")
    return Latency(
        encoder_ms=1e3 * encode_s,
        step_ms=1e3 * statistics.median(steps_s),
        total_ms=1e3 * total_s,
    )


def quantile(latencies: Sequence[Latency], share: float) -> Latency:
    """The given quantile of each figure over the runs; a `share` of 0.5 is the median."""
    return Latency(
        **{
            field.name: _quantile([getattr(latency, field.name) for latency in latencies], share)
            for field in dataclasses.fields(Latency)
        }
    )


def _quantile(values: list[float], share: float) -> float:
    """Interpolated linearly between two values."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
