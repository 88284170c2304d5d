"""The engine on one GPU, with the workload that TensorRT-LLM's PyTorch backend publishes figures for.

    python -m benchmarks.gpu --out FILE          one H100, under ten minutes
    python -m benchmarks.gpu --tiny              the same end to end on a CPU, in seconds, for the script's own sake

Needs torch, transformers and safetensors alone. Speed does not depend on the weights, so they are random; lengths are
forced; decoding is greedy. A figure is the median over the repeats of a whole batch, from its arrival to its last
token, the device idle at either end. The limit is the time to read from memory, at the bandwidth that a copy reaches in
the same run, what every step must: the decoder's weights once, and each row's keys and values.
"""

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from collections.abc import Sequence as Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.environment import environment
from model_store.spec import ModelSpec
from server.engine.attention import FusedAttention, ProductAttention, SumAttention
from server.engine.backend import Feed
from server.engine.engine import Engine
from server.engine.sequence import EngineConfig, GenerationParameters, Sequence

# Milliseconds by batch on one H100 in bfloat16, published in 2026.
ANCHORS = {
    "flan-t5-xl": {32: 706.0, 64: 1137.0, 128: 1999.0},
    "bart-large": {32: 280.0, 64: 343.0, 128: 473.0},
}
TARGET_OF_ANCHOR = 0.7
TARGET_STEP_MS = 0.5  # T5-base, batch 1


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Batches of sources between two lengths, each answered with so many tokens."""

    batches: tuple[int, ...] = (32, 64, 128)
    source_tokens: tuple[int, int] = (260, 440)
    new_tokens: int = 128


def t5(*, d_model: int, d_kv: int, heads: int, d_ff: int, layers: int, vocab_size: int, gated: bool) -> dict[str, Any]:
    """The config.json of a T5."""
    return {
        "model_type": "t5",
        "d_model": d_model,
        "d_kv": d_kv,
        "num_heads": heads,
        "d_ff": d_ff,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "vocab_size": vocab_size,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "tie_word_embeddings": not gated,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }


def bart(*, d_model: int, heads: int, d_ff: int, layers: int, vocab_size: int) -> dict[str, Any]:
    """The config.json of a BART."""
    return {
        "model_type": "bart",
        "d_model": d_model,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": d_ff,
        "decoder_ffn_dim": d_ff,
        "vocab_size": vocab_size,
        "activation_function": "gelu",
        "max_position_embeddings": 1024,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    }


SHAPES = {
    "flan-t5-xl": t5(d_model=2048, d_kv=64, heads=32, d_ff=5120, layers=24, vocab_size=32128, gated=True),
    "bart-large": bart(d_model=1024, heads=16, d_ff=4096, layers=12, vocab_size=50264),
    "t5-base": t5(d_model=768, d_kv=64, heads=12, d_ff=3072, layers=12, vocab_size=32128, gated=False),
}
TINY_SHAPES = {
    "flan-t5-xl": t5(d_model=32, d_kv=8, heads=4, d_ff=48, layers=2, vocab_size=99, gated=True),
    "bart-large": bart(d_model=32, heads=4, d_ff=48, layers=2, vocab_size=99),
    "t5-base": t5(d_model=16, d_kv=8, heads=2, d_ff=32, layers=2, vocab_size=99, gated=False),
}
TINY = Workload(batches=(2, 4), source_tokens=(6, 12), new_tokens=8)


def write_model(config: dict[str, Any], directory: Path, device: str) -> ModelSpec:
    """A folder with random weights in bfloat16, small enough that nothing overflows."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    spec = ModelSpec.from_config(config)
    shapes = dict(spec.tensor_shapes())
    torch.manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) == 1 or "final_logits_bias" in name:
            filled = torch.ones if name.endswith("weight") else torch.zeros
            tensors[name] = filled(shape, dtype=torch.bfloat16)
        else:
            scale = 0.1 if "shared" in name or "embed" in name else 0.5 * shape[1] ** -0.5
            tensors[name] = (scale * torch.randn(shape, dtype=torch.bfloat16, device=device)).cpu()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return spec


def settle(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def seconds(device: str, work: Callable[[], object]) -> float:
    """Time of one call, the device idle before and after."""
    settle(device)
    started_s = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - started_s


def bandwidth(device: str, size_bytes: int) -> float:
    """Bytes a second, read and written, of a copy beyond any cache; the best of a few."""
    origin = torch.ones(size_bytes // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(origin)
    return 2 * size_bytes / min(seconds(device, lambda: target.copy_(origin)) for _ in range(10))


def step_weight_bytes(spec: ModelSpec) -> int:
    """Weights that a step of the decoder reads; those that make the source's keys and values are read once."""
    once = ("EncDecAttention.k", "EncDecAttention.v", "encoder_attn.k_proj", "encoder_attn.v_proj", "embed", "bias.w")
    decoder = 0
    for name, shape in spec.tensor_shapes():
        if "decoder." in name and len(shape) == 2 and not any(part in name for part in once):
            decoder += shape[0] * shape[1]
    return 2 * (decoder + spec.target_vocab_size * spec.d_model)


def limit_ms(spec: ModelSpec, sources: list[list[int]], new_tokens: int, bytes_per_s: float) -> float:
    """The least time of all steps: nothing for the encoder, for arithmetic and for launching."""
    position_bytes = 2 * 2 * spec.head_dim
    cross = position_bytes * sum(len(layer.cross_heads) for layer in spec.decoder)
    own = position_bytes * sum(len(layer.self_heads) for layer in spec.decoder)
    by_row = sum(cross * len(source) + own * (new_tokens + 1) / 2 for source in sources)
    return 1e3 * new_tokens * (step_weight_bytes(spec) + by_row) / bytes_per_s


def make_sources(spec: ModelSpec, count: int, lengths: tuple[int, int]) -> list[list[int]]:
    """Random texts; equal calls give equal ones."""
    draw = random.Random(count)
    return [
        [*(draw.randrange(5, spec.vocab_size) for _ in range(draw.randint(*lengths) - 1)), spec.eos_id]
        for _ in range(count)
    ]


@dataclass(frozen=True)
class Run:
    """One batch, in milliseconds."""

    total_ms: float
    encode_ms: float
    step_ms: float  # the median one
    graph_steps: int
    steps: int


def run_batch(engine: Engine, sources: list[list[int]], new_tokens: int, device: str) -> Run:
    """Everything arrives at once, and the last token of the last ends it."""
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
    assert all(len(sequence.tokens) == new_tokens for sequence in sequences), sequences[0].error
    return Run(1e3 * total_s, 1e3 * encode_s, 1e3 * statistics.median(steps_s), paths.count("graph"), len(paths))


def engine_config(workload: Workload, device: str, *, slots: int, graphs: str) -> EngineConfig:
    """For batches of at most `slots` that are encoded at once."""
    longest = workload.source_tokens[1]
    return EngineConfig(
        dtype="float32" if device == "cpu" else "bfloat16",
        device=device,
        backend="torch",
        graphs=graphs,
        slots=slots,
        max_source_tokens=longest,
        max_new_tokens=workload.new_tokens,
        max_encode_tokens=slots * (longest + 8),
        max_decode_tokens=slots,
    )


def measure_batches(
    name: str, directory: Path, spec: ModelSpec, workload: Workload, device: str, repeats: int, bytes_per_s: float
) -> list[dict[str, Any]]:
    """A row a batch size, beside its anchor."""
    engine = load(directory, engine_config(workload, device, slots=max(workload.batches), graphs="on"))
    rows = []
    for batch in workload.batches:
        sources = make_sources(spec, batch, workload.source_tokens)
        runs = [run_batch(engine, sources, workload.new_tokens, device) for _ in range(repeats + 1)][1:]
        total_ms = statistics.median(run.total_ms for run in runs)
        limit = limit_ms(spec, sources, workload.new_tokens, bytes_per_s)
        row = {
            "shape": name,
            "batch": batch,
            "total_ms": total_ms,
            "encode_ms": statistics.median(run.encode_ms for run in runs),
            "step_ms": statistics.median(run.step_ms for run in runs),
            "steps": runs[0].steps,
            "graph_steps": runs[0].graph_steps,
            "total_ms_runs": [round(run.total_ms, 3) for run in runs],
            "limit_ms": limit,
            "share_of_limit": limit / total_ms,
            "memory_bytes": engine.memory_bytes(),
        }
        anchor = ANCHORS[name].get(batch)
        if anchor is not None and device != "cpu":
            row |= {"anchor_ms": anchor, "of_anchor": total_ms / anchor, "target_of_anchor": TARGET_OF_ANCHOR}
        rows.append(row)
        print_row(row)
    return rows


def load(directory: Path, config: EngineConfig) -> Engine:
    """With the time that it took, and the progress of recording; the engine before it leaves the memory to it."""
    gc.collect()
    if config.device != "cpu":
        torch.cuda.empty_cache()
    started_s = time.perf_counter()
    engine = Engine.load(directory, config, lambda line: print(f"  {line}", flush=True))
    print(f"{directory.name}, graphs {config.graphs}: loaded in {time.perf_counter() - started_s:.1f} s", flush=True)
    return engine


def print_row(row: dict[str, Any]) -> None:
    """One line of the table, as soon as it is known."""
    beside = f"{row['of_anchor']:.2f} of {row['anchor_ms']:.0f} ms" if "anchor_ms" in row else ""
    print(
        f"{row['shape']:<12} batch {row['batch']:>4}: {row['total_ms']:9.1f} ms, encoder {row['encode_ms']:7.1f}, "
        f"step {row['step_ms']:7.3f}, limit {row['limit_ms']:7.1f} ({row['share_of_limit']:.0%})  {beside}",
        flush=True,
    )


def measure_single(directory: Path, workload: Workload, device: str, repeats: int) -> list[dict[str, Any]]:
    """One step at batch 1, with graphs and without: within the engine, and of the backend alone."""
    rows = []
    for graphs in ("on", "off"):
        engine = load(directory, engine_config(workload, device, slots=1, graphs=graphs))
        sources = make_sources(engine.spec, 1, (64, 64) if device != "cpu" else workload.source_tokens)
        runs = [run_batch(engine, sources, workload.new_tokens, device) for _ in range(repeats + 1)][1:]
        backend = engine._backend
        feed = Feed(tokens=[7], positions=[workload.new_tokens // 2], slots=[0], wanted=[0])

        def decode_many(backend: Any = backend, feed: Feed = feed, count: int = 100) -> None:
            with torch.inference_mode():
                for _ in range(count):
                    backend.decode(feed)
                    settle(device)

        decode_many(count=3)
        row = {
            "shape": "t5-base",
            "batch": 1,
            "graphs": graphs,
            "step_ms": statistics.median(run.step_ms for run in runs),
            "backend_step_ms": 1e3 * min(seconds(device, decode_many) for _ in range(repeats)) / 100,
            "target_step_ms": TARGET_STEP_MS,
        }
        rows.append(row)
        print(
            f"t5-base, batch 1, graphs {graphs}: step {row['step_ms']:.3f} ms in the engine, "
            f"{row['backend_step_ms']:.3f} ms in the backend (target {TARGET_STEP_MS})",
            flush=True,
        )
    return rows


def measure_attention(spec: ModelSpec, workload: Workload, device: str, repeats: int) -> list[dict[str, Any]]:
    """Bytes a second of each form of attention over a layer's sources, to tell which one a step should take."""
    heads, width, longest = len(spec.decoder[0].cross_heads), spec.head_dim, workload.source_tokens[1]
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    rows = []
    for batch in workload.batches:
        keys_values = torch.randn(batch, heads, 2, longest, width, device=device).to(dtype)
        query = torch.randn(batch * heads, 1, width, device=device).to(dtype)
        mask = torch.zeros(batch * heads, 1, longest, dtype=dtype, device=device)
        for form in (ProductAttention, FusedAttention, SumAttention):
            attention = form(*keys_values.unbind(2))

            def repeat(attention: Any = attention, query: Any = query, mask: Any = mask) -> None:
                for _ in range(20):
                    attention(query, mask)

            repeat()
            each_s = min(seconds(device, repeat) for _ in range(repeats)) / 20
            rows.append(
                {"form": form.__name__, "batch": batch, "ms": 1e3 * each_s, "bytes_per_s": keys_values.nbytes / each_s}
            )
            speed = keys_values.nbytes / each_s / 1e9
            print(f"{form.__name__:<18} batch {batch:>4}: {1e3 * each_s:.3f} ms, {speed:.0f} GB/s", flush=True)
    return rows


def hardware(device: str) -> dict[str, Any]:
    """The GPU, its memory and CUDA's version; empty on a CPU."""
    if device == "cpu":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda}


def main(arguments: Collection[str] | None = None) -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description="The engine on one GPU, beside TensorRT-LLM's published figures.")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU: checks this script, not speed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no CUDA device is here: use --tiny to check the script on the CPU")
    device, shapes, workload = "cuda", SHAPES, Workload()
    if options.tiny:
        device, shapes, workload = "cpu", TINY_SHAPES, TINY
    bytes_per_s = bandwidth(device, 2**24 if options.tiny else 2**32)
    print(f"a copy moves {bytes_per_s / 1e9:.0f} GB/s", flush=True)
    batches = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ANCHORS:
            directory = Path(folder) / name
            spec = write_model(shapes[name], directory, device)
            batches += measure_batches(name, directory, spec, workload, device, options.repeats, bytes_per_s)
            (directory / "model.safetensors").unlink()
        attention = measure_attention(ModelSpec.from_config(shapes["flan-t5-xl"]), workload, device, options.repeats)
        directory = Path(folder) / "t5-base"
        write_model(shapes["t5-base"], directory, device)
        single = measure_single(directory, replace(workload, batches=(1,)), device, options.repeats)
    if options.out is not None:
        result = {
            "environment": environment() | hardware(device),
            "workload": {
                "source_tokens": workload.source_tokens,
                "new_tokens": workload.new_tokens,
                "dtype": "float32" if options.tiny else "bfloat16",
                "decoding": "greedy, lengths forced",
            },
            "bandwidth_bytes_per_s": bytes_per_s,
            "batches": batches,
            "single": single,
            "attention": attention,
        }
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
