"""The engine and the pruner on one GPU, in nine stages; the engine beside TensorRT-LLM's published figures for an H100.

    python -m benchmarks.gpu --out FILE          one H100 or H200, ten minutes at most
    python -m benchmarks.gpu --check             all stages in miniature on a CPU, in seconds, to check the script

Called again with the same FILE, it measures the missing parts. From the root of a checkout it needs only torch and
safetensors; the tests marked `gpu` also need pytest and transformers, and the stage
`training` needs what the pruner needs. Weights are random and generated on the device.
"""

import argparse
import hashlib
import time
from collections.abc import Sequence as Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.gpu.answers import bart_large, flan_t5_xl, t5_base
from benchmarks.gpu.drill import drill
from benchmarks.gpu.encoder import encoder
from benchmarks.gpu.marked_tests import marked_tests
from benchmarks.gpu.operations import machine, parts_of_steps, probe
from benchmarks.gpu.report import report
from benchmarks.gpu.shapes import FULL, MINIATURE, Scale
from benchmarks.gpu.staged import Stage, open_document, run_stage, run_stages, write_document
from benchmarks.gpu.training import training

_ROOT = Path(__file__).parents[2]

STAGES = (
    Stage(name="machine", seconds=20, work=machine),
    Stage(name="tests", seconds=60, work=marked_tests),
    Stage(name="t5-base", seconds=60, work=t5_base),
    Stage(name="operations", seconds=60, work=parts_of_steps),
    Stage(name="flan-t5-xl", seconds=120, work=flan_t5_xl),
    Stage(name="encoder", seconds=45, work=encoder),
    Stage(name="bart-large", seconds=60, work=bart_large),
    Stage(name="memory", seconds=30, work=drill),
    Stage(name="training", seconds=75, work=training),
)
_PROBE = Stage(name="probe", seconds=40, work=probe)


def code() -> str:
    """A digest of the measured code and of the benchmark: a run does not continue figures of other code."""
    digest = hashlib.sha256()
    folders = ("benchmarks/gpu", "model_store", "server/engine", "nash")
    for path in sorted(path for folder in folders for path in (_ROOT / folder).rglob("*.py")):
        digest.update(str(path.relative_to(_ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def find_hardware(scale: Scale) -> Any:
    """The hardware to measure on; None if it should be a CUDA device and there is none.

    Raises:
        RuntimeError: CUDA does not answer the query.
    """
    entry: dict[str, Any] = {"parts": {}, "failures": {}, "status": "", "reason": ""}
    run_stage(_PROBE, scale, entry, time.monotonic() + _PROBE.seconds, lambda: None)
    if "hardware" not in entry["parts"]:
        raise RuntimeError(f"the device does not answer: {entry['reason']} {entry['failures']}")
    return entry["parts"]["hardware"]


def main(arguments: Collection[str] | None = None) -> None:
    """Run the stages and print the table; the JSON is written along the way."""
    until_s = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="The engine on one GPU, beside TensorRT-LLM's published figures."
    )
    parser.add_argument("--check", action="store_true", help="in miniature on the CPU: checks this script, not speed")
    parser.add_argument("--out", type=Path, help="the JSON, which a later call goes on with")
    parser.add_argument("--minutes", type=float, default=10.0, help="when all must be over (default: 10)")
    parser.add_argument("--stages", nargs="+", choices=[stage.name for stage in STAGES], help="these alone")
    options = parser.parse_args(arguments)
    if options.out is None and not options.check:
        parser.error("--out is missing: name the JSON that is written after each part")
    if options.out is not None and not options.out.parent.is_dir():
        parser.error(f"--out {options.out}: there is no folder {options.out.parent}")
    if options.minutes <= 0:
        parser.error(f"--minutes is {options.minutes:g}: it must be above 0")
    until_s += 60 * options.minutes
    scale = MINIATURE if options.check else FULL
    try:
        hardware = find_hardware(scale)
    except RuntimeError as error:
        parser.error(str(error))
    if hardware is None:
        parser.error("no CUDA device is here: use --check to run the script in miniature on the CPU")
    key = {"code": code(), "hardware": hardware, "miniature": options.check}
    document = open_document(options.out, key, environment())
    document.setdefault(
        "workload",
        {
            "source_tokens": list(scale.source_tokens),
            "new_tokens": scale.new_tokens,
            "dtype": scale.dtype,
            "decoding": "greedy, lengths forced",
            "weights": "random",
        },
    )
    write_document(options.out, document)
    stages = [stage for stage in STAGES if options.stages is None or stage.name in options.stages]
    if options.check:  # the time on a CPU, which may be busy with other work, means nothing
        stages = [replace(stage, seconds=60 * options.minutes) for stage in stages]
    run_stages(stages, scale, document, options.out, until_s)
    print(report(document, [stage.name for stage in STAGES]), flush=True)


if __name__ == "__main__":
    main()
