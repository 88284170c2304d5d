"""Quality and speed of finished models side by side: in float32 and int8, with one thread and with two.

    python -m benchmarks.headline g2p@dense g2p@pruned --store STORE --data test.jsonl --metric phonemes \
        --max-source-tokens 64 --max-new-tokens 64 --source-tokens 9 --new-tokens 7 --out FILE

The first model is the dense one. Quality is measured on the whole file, decoded by the engine in that dtype. Times are
those of a single request with forced lengths: the fast runs of each model, with all models run in turn.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from benchmarks.environment import environment
from model_store.find import FoundModel, find_model
from model_store.store import Store
from nash.data.rows import TaskRow, read_rows
from nash.measuring.evaluate import evaluate
from nash.measuring.latency import FAST, Workload, measure_for, quantile
from nash.measuring.metrics import quality
from nash.modeling.folders import quiet_libraries
from nash.recipes.recipe import DataLayout, MetricKind
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig

DTYPES = ("float32", "int8")
THREADS = (1, 2)


def qualities(
    models: Sequence[FoundModel], rows: Sequence[TaskRow], metric: MetricKind, config: EngineConfig
) -> list[dict[str, Any]]:
    """All metrics of every model, and its quality: the headline metric in percent, higher being better."""
    found = [evaluate(model.model, rows, metric, config).metrics for model in models]
    return [{"dtype": config.dtype, "metrics": each, "quality": quality(metric, each)} for each in found]


def times(models: Sequence[FoundModel], workload: Workload, seconds: float) -> list[dict[str, Any]]:
    """Latency of every model, and how many times as fast it is as the first one."""
    engines = [Engine.load(model.model, workload.config) for model in models]
    fast = [quantile(runs, FAST) for runs in measure_for(engines, workload, seconds, fewest=21, most=2001)]
    same = {"dtype": workload.dtype, "threads": workload.threads}
    return [
        {
            **same,
            "encode_ms": latency.encoder_ms,
            "step_ms": latency.step_ms,
            "total_ms": latency.total_ms,
            "speedup": fast[0].total_ms / latency.total_ms,
        }
        for latency in fast
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate, measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description="Quality and speed of finished models beside each other.")
    parser.add_argument("models", nargs="+", metavar="REF", help="in the store, or directories; the first is dense")
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--data", type=Path, required=True, help="a file of rows, as nash evaluate reads them")
    parser.add_argument("--metric", choices=get_args(MetricKind), default="exact")
    parser.add_argument("--max-source-tokens", type=int, default=512, help="of the file's rows")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="of the file's rows")
    parser.add_argument("--source-tokens", type=int, required=True, help="of the request that is measured")
    parser.add_argument("--new-tokens", type=int, required=True, help="of the request that is measured")
    parser.add_argument("--seconds", type=float, default=6.0, help="of measuring, for each dtype and threads")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    quiet_libraries()
    models = [find_model(model, Store(options.store)) for model in options.models]
    rows = read_rows(options.data, DataLayout())
    known = [
        qualities(
            models,
            rows,
            options.metric,
            EngineConfig(
                dtype=dtype, max_source_tokens=options.max_source_tokens, max_new_tokens=options.max_new_tokens
            ),
        )
        for dtype in DTYPES
    ]
    workloads = [
        Workload(
            batch=1, source_tokens=options.source_tokens, new_tokens=options.new_tokens, dtype=dtype, threads=threads
        )
        for dtype in DTYPES
        for threads in THREADS
    ]
    timed = [times(models, workload, options.seconds) for workload in workloads]
    document = {
        "environment": environment(),
        "metric": options.metric,
        "n": len(rows),
        "source_tokens": options.source_tokens,
        "new_tokens": options.new_tokens,
        "models": [
            {**shape(model), "quality": list(figures), "latency": list(latencies)}
            for model, figures, latencies in zip(
                models, zip(*known, strict=True), zip(*timed, strict=True), strict=True
            )
        ],
    }
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    _print_table(document)


def shape(model: FoundModel) -> dict[str, Any]:
    """The remaining shape of a model."""
    spec = model.model.spec
    return {"ref": model.ref, "decoder_layers": len(spec.decoder), "encoder_sparsity": spec.encoder_sparsity}


def _print_table(document: dict[str, Any]) -> None:
    for model in document["models"]:
        figures = [f"{each['dtype']} {each['quality']:.2f} %" for each in model["quality"]]
        figures += [
            f"{each['dtype']}, {each['threads']} threads: {each['total_ms']:.3f} ms, {each['speedup']:.2f}x"
            for each in model["latency"]
        ]
        print(model["ref"], *figures, sep="  ")


if __name__ == "__main__":
    main()
