"""The gain of each part of pruning on the engine: time over decoder layers, encoder layers, and encoder sparsity.

    python -m benchmarks.scaling --shape t5-small --out FILE

It uses a well-known shape with random weights and forced lengths. A step reads the layers and the vocabulary matrix, so
its time should be linear in the layers and start at the cost of the logits. The encoder's time should fall with its
sparsity. The time of a whole answer shows which of them matters: a decoder layer runs for every token, an encoder layer
once. All models run in turn; the figures are those of the fast runs.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import environment
from benchmarks.shapes import NAMED, Shape, config_of
from model_store.model.config import spec_of
from model_store.model.spec import ModelSpec
from nash.measuring.latency import FAST, Workload, measure_turns, quantile
from nash.measuring.random_model import cut_spec, load_random_engine, uniform_widths

LAYERS = (1, 2, 3, 4, 6, 8, 12)
SPARSITIES = (0.15, 0.3, 0.45, 0.6)


def models(shape: Shape) -> list[ModelSpec]:
    """The dense model, then models with one thing cut at a time."""
    dense = spec_of(config_of(shape).to_dict())
    fewer = [layers for layers in LAYERS if layers < shape.layers]
    return [
        dense,
        *(cut_spec(dense, decoder_layers=layers, heads=dense.num_heads, units=dense.d_ff) for layers in fewer),
        *(replace(dense, encoder=dense.encoder[:layers]) for layers in fewer),
        *(sparse(dense, sparsity) for sparsity in SPARSITIES),
    ]


def sparse(dense: ModelSpec, sparsity: float) -> ModelSpec:
    """The dense model with all decoder layers, and all encoder layers cut alike."""
    heads, units = uniform_widths(dense, sparsity)
    return cut_spec(dense, decoder_layers=len(dense.decoder), heads=heads, units=units)


def measure(shape: Shape, options: argparse.Namespace, batch: int) -> dict[str, Any]:
    """The curves of one batch size."""
    workload = Workload(
        batch=batch,
        source_tokens=shape.source_tokens,
        new_tokens=shape.new_tokens,
        dtype=options.dtype,
        threads=options.threads,
    )
    specs, config = models(shape), config_of(shape).to_dict()
    engines = [load_random_engine(spec, config, workload) for spec in specs]
    latencies = [quantile(runs, FAST) for runs in measure_turns(engines, workload, options.repeats)]
    rows = [
        {
            "decoder_layers": len(spec.decoder),
            "encoder_layers": len(spec.encoder),
            "encoder_sparsity": round(spec.encoder_sparsity, 4) if len(spec.encoder) == shape.layers else 0.0,
            "step_ms": latency.step_ms,
            "encode_ms": latency.encoder_ms,
            "total_ms": latency.total_ms,
        }
        for spec, latency in zip(specs, latencies, strict=True)
    ]
    dense = rows[0]
    by_decoder = [row for row in rows if row["decoder_layers"] < shape.layers] + [dense]
    by_encoder = [row for row in rows if row["encoder_layers"] < shape.layers] + [dense]
    by_sparsity = [dense] + [row for row in rows if row["encoder_sparsity"]]
    return {
        "batch": batch,
        "rows": rows,
        "step_ms_over_layers": _line(by_decoder, "decoder_layers", "step_ms"),
        "total_ms_over_decoder_layers": _line(by_decoder, "decoder_layers", "total_ms"),
        "total_ms_over_encoder_layers": _line(by_encoder, "encoder_layers", "total_ms"),
        "encode_ms_over_sparsity": _line(by_sparsity, "encoder_sparsity", "encode_ms"),
    }


def _line(rows: list[dict[str, Any]], x_name: str, y_name: str) -> dict[str, float]:
    """The best-fit line, and the share of the variance that it explains."""
    x, y = np.array([row[x_name] for row in rows]), np.array([row[y_name] for row in rows])
    slope, start = np.polyfit(x, y, 1)
    residual = y - (slope * x + start)
    return {"slope": float(slope), "start": float(start), "r2": float(1 - residual.var() / np.var(y))}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description="Time over decoder layers, encoder layers and encoder sparsity.")
    parser.add_argument("--shape", choices=NAMED, default="t5-small")
    parser.add_argument("--batch", type=int, action="append", help="default: 1 and 8")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    shape = NAMED[options.shape]
    results = [measure(shape, options, batch) for batch in options.batch or (1, 8)]
    for result in results:
        for row in result["rows"]:
            shares = f"decoder {row['decoder_layers']:>2}, encoder {row['encoder_layers']:>2} layers"
            print(
                f"batch {result['batch']}: {shares}, {row['encoder_sparsity']:>4.0%} of it cut: "
                f"step {row['step_ms']:.3f} ms, encoder {row['encode_ms']:.2f} ms, total {row['total_ms']:.1f} ms"
            )
        for name, line in result.items():
            if "_over_" in name:
                print(f"  {name}: {line['start']:.3f} + {line['slope']:.3f} x, R2 {line['r2']:.4f}")
    if options.out is not None:
        engine = {"dtype": options.dtype, "threads": options.threads}
        document = {"environment": environment(), "shape": shape.name, "engine": engine, "results": results}
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
