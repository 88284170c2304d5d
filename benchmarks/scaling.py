"""What each part of pruning buys on the engine: a decode step by decoder layers, the encoder by its sparsity.

    python -m benchmarks.scaling --out FILE

T5-small's shape with random weights, lengths forced. A step reads the layers and the vocabulary's matrix, so its time
should be a straight line over the layers that begins at the cost of the logits; the encoder's should fall with what is
cut out of it. All models run in turn; medians.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import environment
from benchmarks.shapes import SHAPES, Shape, build, prune
from nash.latency import measure_side_by_side
from server.engine.sequence import EngineConfig

SPARSITIES = (0.0, 0.15, 0.3, 0.45, 0.6)


def measure(shape: Shape, options: argparse.Namespace, batch: int) -> dict[str, Any]:
    """Both curves of one batch size."""
    dense = build(shape)
    cuts = [(layers, 0.0) for layers in range(1, shape.layers + 1)]
    cuts += [(shape.layers, sparsity) for sparsity in SPARSITIES[1:]]
    config = EngineConfig(dtype=options.dtype, threads=options.threads)
    with tempfile.TemporaryDirectory() as folder:
        directories = []
        for number, (layers, sparsity) in enumerate(cuts):
            directories.append(Path(folder) / str(number))
            prune(dense, layers, sparsity).save_pretrained(directories[-1])
        latencies = measure_side_by_side(
            directories,
            batch=batch,
            source_tokens=shape.source_tokens,
            new_tokens=shape.new_tokens,
            repeats=options.repeats,
            config=config,
        )
    rows = [
        {
            "decoder_layers": layers,
            "encoder_sparsity": sparsity,
            "step_ms": latency.step_ms,
            "encode_ms": latency.encode_ms,
        }
        for (layers, sparsity), latency in zip(cuts, latencies, strict=True)
    ]
    by_layers = [row for row in rows if row["encoder_sparsity"] == 0.0]
    by_sparsity = [by_layers[-1], *rows[shape.layers :]]
    return {
        "batch": batch,
        "rows": rows,
        "step_ms_over_layers": _line([row["decoder_layers"] for row in by_layers], [r["step_ms"] for r in by_layers]),
        "encode_ms_over_kept": _line(
            [1 - row["encoder_sparsity"] for row in by_sparsity], [row["encode_ms"] for row in by_sparsity]
        ),
    }


def _line(x: list[float], y: list[float]) -> dict[str, float]:
    """The best straight line, and the share of the variance that it explains."""
    slope, start = np.polyfit(x, y, 1)
    residual = np.array(y) - (slope * np.array(x) + start)
    return {"slope": float(slope), "start": float(start), "r2": float(1 - residual.var() / np.var(y))}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description="Time over decoder layers and over encoder sparsity.")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = [measure(SHAPES[-1], options, batch) for batch in (1, 8)]
    for result in results:
        for row in result["rows"]:
            what = f"{row['decoder_layers']} decoder layers, {row['encoder_sparsity']:.0%} of the encoder cut"
            print(f"batch {result['batch']}: {what}: step {row['step_ms']:.3f} ms, encoder {row['encode_ms']:.2f} ms")
        for name in ("step_ms_over_layers", "encode_ms_over_kept"):
            line = result[name]
            print(f"  {name}: {line['start']:.3f} + {line['slope']:.3f} x, R2 {line['r2']:.4f}")
    if options.out is not None:
        engine = {"dtype": options.dtype, "threads": options.threads}
        document = {"environment": environment(), "shape": SHAPES[-1].name, "engine": engine, "results": results}
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
