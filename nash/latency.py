"""How long a model takes, measured on the engine that will serve it."""

import dataclasses
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.engine.engine import Engine
from server.engine.sequence import EngineConfig, GenerationParameters
from server.engine.sequence import Sequence as Generation


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One workload on one model: `batch` sources that arrive together, all lengths forced; medians of the repeats."""

    encode_ms: float  # the whole batch through the encoder
    step_ms: float  # one decode step of the whole batch
    total_ms: float  # from the arrival of all to the last token of the last
    tokens_per_s: float  # generated, of the whole batch: batch x new_tokens / total


def measure(model: Engine | Path, *, batch: int, source_tokens: int, new_tokens: int, repeats: int = 5) -> Latency:
    """Latency of one loaded engine, or of the model in a directory, which is loaded in float32 for the workload."""
    return measure_side_by_side(
        [model], batch=batch, source_tokens=source_tokens, new_tokens=new_tokens, repeats=repeats
    )[0]


def measure_side_by_side(
    models: Sequence[Engine | Path],
    *,
    batch: int,
    source_tokens: int,
    new_tokens: int,
    repeats: int = 5,
    config: EngineConfig | None = None,
) -> list[Latency]:
    """Latency of several models in the order given, run in turn (A B A B), so that a busy machine is busy for all.

    Directories are loaded with `config`, its limits set to the workload; engines are measured as they are. Every
    model is run once before it is measured.

    Raises:
        server.engine.errors.EngineError: a directory cannot be loaded, or an engine's limits are below the workload.
    """
    config = dataclasses.replace(
        config or EngineConfig(),
        slots=batch,
        max_source_tokens=source_tokens,
        max_new_tokens=new_tokens,
        max_encode_tokens=batch * source_tokens,
    )
    engines = [m if isinstance(m, Engine) else Engine.load(m, config) for m in models]
    parameters = GenerationParameters(max_new_tokens=new_tokens, ignore_eos=True)
    runs: list[list[Latency]] = [[] for _ in engines]
    for repeat in range(repeats + 1):
        for engine, latencies in zip(engines, runs, strict=True):
            latency = _run(engine, _sources(engine, batch, source_tokens), parameters)
            if repeat > 0:
                latencies.append(latency)
    return [_median(latencies) for latencies in runs]


def _sources(engine: Engine, batch: int, source_tokens: int) -> list[list[int]]:
    """Random ordinary tokens; equal calls give equal sources."""
    special = {engine.spec.pad_id, engine.spec.eos_id, engine.spec.decoder_start_id}
    ordinary = [token for token in range(engine.spec.vocab_size) if token not in special]
    generator = random.Random(batch * source_tokens)
    return [generator.choices(ordinary, k=source_tokens) for _ in range(batch)]


def _run(engine: Engine, sources: list[list[int]], parameters: GenerationParameters) -> Latency:
    for i, source in enumerate(sources):
        engine.add(Generation(id=i, source_ids=source, parameters=parameters))
    encode_s, steps_s = 0.0, []
    started_s = time.perf_counter()
    while not engine.idle:
        engine.step()
        encode_s += engine.step_stats.encode_s
        if engine.step_stats.batch_size == len(sources):
            steps_s.append(engine.step_stats.decode_s)
    total_s = time.perf_counter() - started_s
    return Latency(
        encode_ms=1e3 * encode_s,
        step_ms=1e3 * statistics.median(steps_s),
        total_ms=1e3 * total_s,
        tokens_per_s=len(sources) * parameters.max_new_tokens / total_s,
    )


def _median(latencies: list[Latency]) -> Latency:
    return Latency(
        **{
            field.name: statistics.median(getattr(latency, field.name) for latency in latencies)
            for field in dataclasses.fields(Latency)
        }
    )
