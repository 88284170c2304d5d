"""int4 beside int8 at batch 1: the time of a decode step, and the part that the decoder's layers take.

    python -m benchmarks.int4_step --out FILE

The models have T5-base's shape and random weights (plainly rounded for int4); lengths are forced. Four models run in
turn: each dtype with its whole decoder and without any decoder layer. Ratios compare runs adjacent in time; the figures
are their medians.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.environment import environment
from benchmarks.shapes import T5_BASE, config_of
from benchmarks.t5_base import models
from nash.measuring.latency import Workload, measure_turns
from nash.measuring.random_model import load_random_engine

DTYPES = ("int8", "int4")
MODELS = ("dense", "no decoder layer")


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description="int4 beside int8 at batch 1.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    workload = Workload(
        batch=1,
        source_tokens=T5_BASE.source_tokens,
        new_tokens=T5_BASE.new_tokens,
        dtype="float32",
        threads=options.threads,
    )
    config = config_of(T5_BASE).to_dict()
    specs = models(T5_BASE, decoder_layers=1, vocabulary=8)
    engines = [
        load_random_engine(specs[name], config, replace(workload, dtype=dtype)) for dtype in DTYPES for name in MODELS
    ]
    turns = [[run.step_ms for run in runs] for runs in measure_turns(engines, workload, options.repeats)]
    rows = list(zip(*turns, strict=True))
    result = {
        "step_ms": {
            f"{dtype}, {name}": statistics.median(its)
            for (dtype, name), its in zip(((d, n) for d in DTYPES for n in MODELS), turns, strict=True)
        },
        "int4_over_int8": {
            "step": statistics.median(int4 / int8 for int8, _, int4, _ in rows),
            "layers": statistics.median((int4 - rest4) / (int8 - rest8) for int8, rest8, int4, rest4 in rows),
        },
    }
    print(json.dumps(result, indent=2))
    if options.out is not None:
        document = {"environment": environment(), "repeats": options.repeats} | result
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
