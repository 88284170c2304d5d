"""Stages that measure whole answers, from the arrival of a whole batch to the last token of its last answer.

A figure is the median over the repeats; the device is idle before and after each. Lengths are forced; decoding is
greedy.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.device import on_device, peak_memory, release, repeat, seconds, settle
from benchmarks.gpu.random_engine import load, used_buckets
from benchmarks.gpu.shapes import Scale, make_sources, read_bytes
from benchmarks.gpu.staged import Recorder
from model_store.model.config import spec_of
from server.engine.backend import Feed
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.sequence import Sequence

_KERNELS = 40  # listed in the table


@dataclass(frozen=True)
class Run:
    """One batch, in milliseconds."""

    total_ms: float
    encode_ms: float
    step_ms: float  # the median step
    graph_steps: int
    steps: int


def run_batch(engine: Engine, sources: list[list[int]], new_tokens: int, device: str) -> Run:
    """Answer the sources, which arrive together, with `new_tokens` tokens each."""
    parameters = GenerationParameters(max_new_tokens=new_tokens, ignore_eos=True)
    sequences = [Sequence(id=i, source_ids=source, parameters=parameters) for i, source in enumerate(sources)]
    encode_s, steps_s, paths = 0.0, [], []

    def work() -> None:
        nonlocal encode_s
        for sequence in sequences:
            engine.add(sequence)
        while not engine.idle:
            engine.step()
            encode_s += engine.step_stats.encode_s
            steps_s.append(engine.step_stats.decode_s)
            paths.append(engine.step_stats.path)

    total_s = seconds(device, work)
    for sequence in sequences:
        if len(sequence.tokens) != new_tokens:
            raise RuntimeError(f"{len(sequence.tokens)} tokens of {new_tokens} were made: {sequence.error}")
    return Run(1e3 * total_s, 1e3 * encode_s, 1e3 * statistics.median(steps_s), paths.count("graph"), len(paths))


def engine_config(scale: Scale, *, slots: int, graphs: str) -> EngineConfig:
    """The configuration for batches of at most `slots` sources that are encoded at once."""
    longest = scale.source_tokens[1]
    return EngineConfig(
        dtype=scale.dtype,
        device=scale.device,
        backend="torch",
        graphs=graphs,
        slots=slots,
        max_source_tokens=longest,
        max_new_tokens=scale.new_tokens,
        max_encode_tokens=slots * (longest + 8),
        max_decode_tokens=slots,
    )


@on_device
def flan_t5_xl(record: Recorder, scale: Scale) -> None:
    """Flan-T5-XL's batches."""
    _measure_batches(record, scale, "flan-t5-xl")


@on_device
def bart_large(record: Recorder, scale: Scale) -> None:
    """BART-large's batches."""
    _measure_batches(record, scale, "bart-large")


def _measure_batches(record: Recorder, scale: Scale, name: str) -> None:
    shape = scale.shapes[name]
    spec = spec_of(shape)
    config = engine_config(scale, slots=max(scale.batches), graphs="on")
    sources = {batch: make_sources(spec, batch, scale.source_tokens) for batch in scale.batches}
    longest = {batch: max(map(len, of_batch)) for batch, of_batch in sources.items()}
    buckets = used_buckets(config, longest, scale.new_tokens)
    works = {f"batch {batch}": partial(_measure_batch, record, scale, sources[batch]) for batch in scale.batches}
    record.parts(works, lambda: load(record, "load", shape, config, buckets))


def _measure_batch(record: Recorder, scale: Scale, sources: list[list[int]], engine: Engine) -> dict[str, Any]:
    release(scale.device)
    first = run_batch(engine, sources, scale.new_tokens, scale.device)
    runs = repeat(record, scale, lambda: run_batch(engine, sources, scale.new_tokens, scale.device))
    total_ms = statistics.median(run.total_ms for run in runs)
    row = {
        "batch": len(sources),
        "total_ms": total_ms,
        "tokens_per_s": 1e3 * len(sources) * scale.new_tokens / total_ms,
        "encode_ms": statistics.median(run.encode_ms for run in runs),
        "step_ms": statistics.median(run.step_ms for run in runs),
        "steps": first.steps,
        "graph_steps": first.graph_steps,
        "first_total_ms": first.total_ms,
        "first_encode_ms": first.encode_ms,  # includes the one-time work for new shapes
        "total_ms_runs": [round(run.total_ms, 3) for run in runs],
        "source_tokens": sum(map(len, sources)),
        "read_bytes": read_bytes(engine.spec, sources, scale.new_tokens),
    }
    record.line(
        f"batch {len(sources):>4}: {total_ms:9.1f} ms, encoder {row['encode_ms']:7.1f} (first {first.encode_ms:.1f}), "
        f"step {row['step_ms']:7.3f}, {row['tokens_per_s']:.0f} tokens/s"
    )
    return row | peak_memory(scale.device)


@on_device
def t5_base(record: Recorder, scale: Scale) -> None:
    """One step at batch 1, with and without graphs: in the engine, in the backend alone, and by kernel."""
    shape = scale.shapes["t5-base"]
    for graphs in ("on", "off"):
        config = engine_config(scale, slots=1, graphs=graphs)
        buckets = used_buckets(config, {1: scale.single_source_tokens}, scale.new_tokens)
        works = {
            f"step, graphs {graphs}": partial(_measure_step, record, scale),
            f"kernels, graphs {graphs}": partial(_list_kernels, record, scale),
        }
        name = f"load, graphs {graphs}"
        record.parts(works, partial(load, record, name, shape, config, buckets))


def _measure_step(record: Recorder, scale: Scale, engine: Engine) -> dict[str, Any]:
    sources = make_sources(engine.spec, 1, (scale.single_source_tokens, scale.single_source_tokens))
    run_batch(engine, sources, scale.new_tokens, scale.device)
    runs = repeat(record, scale, lambda: run_batch(engine, sources, scale.new_tokens, scale.device))
    decode_many = _decoding(scale, engine)
    decode_many()
    backend_s = min(repeat(record, scale, lambda: seconds(scale.device, decode_many)))
    row = {
        "batch": 1,
        "step_ms": statistics.median(run.step_ms for run in runs),
        "backend_step_ms": 1e3 * backend_s / scale.calls,
        "encode_ms": statistics.median(run.encode_ms for run in runs),
        "steps": runs[0].steps,
        "graph_steps": runs[0].graph_steps,
        "step_ms_runs": [round(run.step_ms, 4) for run in runs],
    }
    record.line(f"step {row['step_ms']:.3f} ms in the engine, {row['backend_step_ms']:.3f} ms in the backend")
    return row


def _list_kernels(record: Recorder, scale: Scale, engine: Engine) -> dict[str, Any]:
    """The device's work in a step by kernel, longest first; on a CPU by operation."""
    sources = make_sources(engine.spec, 1, (scale.single_source_tokens, scale.single_source_tokens))
    run_batch(engine, sources, scale.new_tokens, scale.device)
    decode_many = _decoding(scale, engine)
    decode_many()
    on_cpu = scale.device == "cpu"
    # Profile only CUDA: recording the host's operations would slow the steps down and take minutes to evaluate.
    with profile(activities=[ProfilerActivity.CPU if on_cpu else ProfilerActivity.CUDA]) as profiler:
        decode_many()
    times = [
        (event.self_cpu_time_total if on_cpu else event.self_device_time_total, event.count, event.key)
        for event in profiler.key_averages()
        if on_cpu or event.device_type.name == "CUDA"
    ]
    if not times:
        raise RuntimeError("the profiler saw no kernel: CUPTI is missing, or may not be used here")
    times.sort(reverse=True)
    kernels = {
        "per_step": sum(count for _, count, _ in times) / scale.calls,
        "us_per_step": sum(us for us, _, _ in times) / scale.calls,
        "table": [
            {"name": name[:160], "per_step": count / scale.calls, "us_per_step": us / scale.calls}
            for us, count, name in times[:_KERNELS]
        ],
    }
    record.line(f"{kernels['per_step']:.0f} kernels a step take {kernels['us_per_step']:.0f} us")
    return kernels


def _decoding(scale: Scale, engine: Engine) -> Callable[[], None]:
    """Many steps of the backend alone, each followed by a wait, in the middle of an answer to the last source."""
    backend = engine._backend
    feed = Feed(tokens=[7], positions=[scale.new_tokens // 2], slots=[0], wanted=[0])

    @torch.inference_mode()
    def decode_many() -> None:
        for _ in range(scale.calls):
            backend.decode(feed)
            settle(scale.device)

    return decode_many
