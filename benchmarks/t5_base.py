"""T5-base's shape, dense against 3 of 12 decoder layers with 30 % of the encoder cut, and the bound set by the logits.

    python -m benchmarks.t5_base --out FILE

The engine runs models with random weights (plainly rounded for int4) and forced lengths. All models of a dtype and
batch run in turn; the figures are medians. Shortening a decoder does not change the vocabulary matrix: a model without
any decoder layer shows that matrix's part of a step, and so the highest possible speed-up of a step. With a trimmed
vocabulary the matrix shrinks too; the speed-up is still over the dense model with its whole vocabulary.

`by weights` is the speed-up on a machine that only reads the weights of a step once.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_cpu import step_weights
from benchmarks.environment import environment
from benchmarks.shapes import ENCODER_SPARSITY, NAMED, Shape, config_of
from model_store.model.config import spec_of
from model_store.model.spec import DecoderLayerSpec, ModelSpec
from nash.measuring.figures import Latency
from nash.measuring.latency import Workload, measure_turns, paired_speedup, quantile
from nash.measuring.random_model import cut_spec, load_random_engine, uniform_widths, with_vocabulary

DTYPES = ("float32", "int8")


def models(shape: Shape, decoder_layers: int, vocabulary: int) -> dict[str, ModelSpec]:
    """All measured models by name; the dense one is first."""
    dense = spec_of(config_of(shape).to_dict())
    heads, units = uniform_widths(dense, ENCODER_SPARSITY)
    pruned = cut_spec(dense, decoder_layers=decoder_layers, heads=heads, units=units)
    return {
        "dense": dense,
        "pruned": pruned,
        "pruned, trimmed": with_vocabulary(pruned, vocabulary),
        "no decoder layer": without_decoder(dense),
        "no decoder layer, trimmed": with_vocabulary(without_decoder(dense), vocabulary),
    }


def without_decoder(spec: ModelSpec) -> ModelSpec:
    """The shape whose decode step does only the work outside the layers: embedding, logits, the choice of a token."""
    nothing = DecoderLayerSpec(self_heads=(), cross_heads=(), ffn=0, origin=0)
    return ModelSpec(**{**vars(spec), "decoder": (nothing,)})


def measure(
    shape: Shape, specs: dict[str, ModelSpec], dtype: str, batch: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure one dtype and batch."""
    workload = Workload(
        batch=batch,
        source_tokens=shape.source_tokens,
        new_tokens=shape.new_tokens,
        dtype=dtype,
        threads=options.threads,
    )
    config = config_of(shape).to_dict()
    engines = [load_random_engine(spec, config, workload) for spec in specs.values()]
    turns = dict(zip(specs, measure_turns(engines, workload, options.repeats), strict=True))
    latencies = {name: quantile(runs, 0.5) for name, runs in turns.items()}
    return {
        "dtype": dtype,
        "batch": batch,
        "rows": [row(name, latency, turns, latencies["dense"]) for name, latency in latencies.items()],
        "bounds": bounds(shape, options.decoder_layers, options.vocabulary, latencies),
    }


def row(name: str, latency: Latency, turns: dict[str, list[Latency]], dense: Latency) -> dict[str, Any]:
    """One model's figures beside the dense one's."""
    return {
        "model": name,
        "encode_ms": latency.encoder_ms,
        "step_ms": latency.step_ms,
        "total_ms": latency.total_ms,
        "speedup": dense.total_ms / latency.total_ms,
        "speedup_quartiles": paired_speedup(turns["dense"], turns[name]).quartiles,
        "step_speedup": dense.step_ms / latency.step_ms,
        "total_ms_turns": [round(run.total_ms, 3) for run in turns[name]],
    }


def bounds(shape: Shape, decoder_layers: int, vocabulary: int, latencies: dict[str, Latency]) -> dict[str, float]:
    """How many times faster a decode step can become: at this depth, by weights read, and without any layer."""
    head = shape.vocab_size * shape.d_model
    layers, kept = step_weights(shape, shape.layers) - head, step_weights(shape, decoder_layers) - head
    dense_ms = latencies["dense"].step_ms
    return {
        "step_by_weights": (layers + head) / (kept + head),
        "step_by_weights_trimmed": (layers + head) / (kept + vocabulary * shape.d_model),
        "step_without_layers": dense_ms / latencies["no decoder layer"].step_ms,
        "step_without_layers_trimmed": dense_ms / latencies["no decoder layer, trimmed"].step_ms,
        "untouched_share_of_pruned_step": latencies["no decoder layer"].step_ms / latencies["pruned"].step_ms,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print tables, write the JSON."""
    parser = argparse.ArgumentParser(description="T5-base, dense against pruned, with whole and trimmed vocabulary.")
    parser.add_argument("--shape", choices=NAMED, default="t5-base")
    parser.add_argument("--decoder-layers", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=8000, help="tokens that a trimmed model keeps")
    parser.add_argument("--batch", type=int, action="append", help="default: the shape's")
    parser.add_argument("--dtype", action="append", help=f"default: {' and '.join(DTYPES)}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    shape = NAMED[options.shape]
    specs = models(shape, options.decoder_layers, options.vocabulary)
    results = []
    for dtype in options.dtype or DTYPES:
        for batch in options.batch or shape.batches:
            results.append(measure(shape, specs, dtype, batch, options))
            show(results[-1])
    if options.out is not None:
        document = {
            "environment": environment(),
            "shape": shape.name,
            "decoder_layers": options.decoder_layers,
            "encoder_sparsity": specs["pruned"].encoder_sparsity,
            "vocabulary": options.vocabulary,
            "source_tokens": shape.source_tokens,
            "new_tokens": shape.new_tokens,
            "threads": options.threads,
            "results": results,
        }
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def show(result: dict[str, Any]) -> None:
    """Print one dtype and batch as a table."""
    print(f"\n{result['dtype']}, batch {result['batch']}")
    print(f"{'':<28}{'encode ms':>11}{'step ms':>9}{'total ms':>10}{'speed-up':>10}{'quartiles':>14}{'step':>8}")
    for row in result["rows"]:
        low, high = row["speedup_quartiles"]
        print(
            f"{row['model']:<28}{row['encode_ms']:>11.2f}{row['step_ms']:>9.3f}{row['total_ms']:>10.1f}"
            f"{row['speedup']:>9.2f}x{f'{low:.2f} to {high:.2f}':>14}{row['step_speedup']:>7.2f}x"
        )
    found = result["bounds"]
    print(
        f"a step by weights: {found['step_by_weights']:.2f}x, trimmed {found['step_by_weights_trimmed']:.2f}x; without "
        f"any layer: {found['step_without_layers']:.2f}x, trimmed {found['step_without_layers_trimmed']:.2f}x; "
        f"{found['untouched_share_of_pruned_step']:.0%} of the pruned step is untouched by pruning"
    )


if __name__ == "__main__":
    main()
