"""The engine beside transformers' generate on the CPU: dense, and what shortening and narrowing the model gives.

    python -m benchmarks.engine_cpu --out FILE

Speed does not depend on the weights, so they are random; lengths are forced. The contenders run in turn, and a ratio
is that of medians over the turns. Greedy decoding, float32, the same number of threads for all.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

from benchmarks.environment import environment
from model_store.spec import ModelSpec
from nash.compaction import compact, shorten_decoder
from nash.latency import Latency, measure_side_by_side
from nash.layer_selection import select_layers
from nash.masking import EncoderGates
from server.engine.engine import Engine
from server.engine.sequence import EngineConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A T5 and a workload for it."""

    name: str
    d_model: int
    num_heads: int
    d_kv: int
    d_ff: int
    layers: int
    vocab_size: int
    source_tokens: int
    new_tokens: int


G2P = Shape(
    name="g2p", d_model=192, num_heads=3, d_kv=64, d_ff=768, layers=6, vocab_size=69, source_tokens=8, new_tokens=7
)
T5_SMALL = Shape(
    name="t5-small",
    d_model=512,
    num_heads=8,
    d_kv=64,
    d_ff=2048,
    layers=6,
    vocab_size=32128,
    source_tokens=64,
    new_tokens=64,
)
ENCODER_SPARSITY = 0.3
BATCHES = (1, 8, 16)


def build(shape: Shape) -> T5ForConditionalGeneration:
    """A dense model of the shape with random weights."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=shape.vocab_size,
        d_model=shape.d_model,
        num_heads=shape.num_heads,
        d_kv=shape.d_kv,
        d_ff=shape.d_ff,
        num_layers=shape.layers,
        num_decoder_layers=shape.layers,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config).eval()


def prune(dense: T5ForConditionalGeneration, decoder_layers: int) -> Any:
    """The model cut as `nash prune` cuts it, by gates that were never trained."""
    spec = ModelSpec.from_config(dense.config.to_dict())
    gates = EncoderGates(spec, heads=True, units=True)
    for alpha in gates.unit_alphas:
        alpha.data.copy_(torch.linspace(-1, 1, len(alpha)))  # units before heads, alike in every layer
    kept = select_layers(spec.dense_decoder_layers, decoder_layers)
    return compact(shorten_decoder(dense, kept), spec, kept, gates.harden(ENCODER_SPARSITY))


def measure_transformers(model: T5ForConditionalGeneration, shape: Shape, batch: int) -> float:
    """One run of generate with forced lengths, in milliseconds."""
    ids = torch.randint(3, shape.vocab_size, (batch, shape.source_tokens))
    settings = GenerationConfig(
        max_new_tokens=shape.new_tokens,
        min_new_tokens=shape.new_tokens,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    start_s = time.perf_counter()
    with torch.inference_mode():
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return 1e3 * (time.perf_counter() - start_s)


def run(shape: Shape, threads: int, repeats: int) -> list[dict[str, Any]]:
    """Every contender at every batch size; totals in milliseconds."""
    dense = build(shape)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        contenders = {"engine dense": dense}
        for layers in (2, 1):
            contenders[f"engine {layers} of {shape.layers}"] = prune(dense, layers)
        for name, model in contenders.items():
            model.save_pretrained(Path(folder) / name)
        for batch in BATCHES:
            config = EngineConfig(
                threads=threads,
                slots=batch,
                max_source_tokens=shape.source_tokens,
                max_new_tokens=shape.new_tokens,
                max_encode_tokens=batch * shape.source_tokens,
            )
            engines = [Engine.load(Path(folder) / name, config) for name in contenders]
            ours: list[list[Latency]] = []
            theirs = []
            measure_transformers(dense, shape, batch)
            for _ in range(repeats):
                theirs.append(measure_transformers(dense, shape, batch))
                ours.append(
                    measure_side_by_side(
                        engines,
                        batch=batch,
                        source_tokens=shape.source_tokens,
                        new_tokens=shape.new_tokens,
                        repeats=1,
                    )
                )
            reference_ms = statistics.median(theirs)
            common = {"shape": shape.name, "batch": batch, "threads": threads}
            rows.append({**common, "contender": "transformers", "total_ms": reference_ms, "speedup": 1.0})
            for i, name in enumerate(contenders):
                figures = {
                    field: statistics.median(getattr(turn[i], field) for turn in ours)
                    for field in ("encode_ms", "step_ms", "total_ms")
                }
                rows.append({**common, "contender": name, **figures, "speedup": reference_ms / figures["total_ms"]})
    return rows


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description="The engine beside transformers on the CPU.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for shape in (G2P, T5_SMALL) for row in run(shape, options.threads, options.repeats)]
    print(f"{'shape':<10}{'batch':>6}  {'contender':<14}{'encode ms':>11}{'step ms':>9}{'total ms':>10}{'ratio':>8}")
    for row in rows:
        encode, step = (f"{row[k]:.2f}" if k in row else "" for k in ("encode_ms", "step_ms"))
        print(
            f"{row['shape']:<10}{row['batch']:>6}  {row['contender']:<14}{encode:>11}{step:>9}"
            f"{row['total_ms']:>10.2f}{row['speedup']:>7.2f}x"
        )
    if options.out is not None:
        result = {"environment": environment(), "rows": rows}
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
