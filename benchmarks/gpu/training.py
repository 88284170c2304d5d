"""The stage of training: a pruning step beside a plain fine-tuning step, and generation as the pruner uses it.

T5-base's shape; weights and texts are random. It needs what the pruner needs: transformers, pydantic, rich.
"""

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.device import on_device, peak_memory, release, seconds
from benchmarks.gpu.shapes import Scale
from benchmarks.gpu.staged import NotPossibleError, Recorder

_ROWS = 256  # that are evaluated


@on_device
def training(record: Recorder, scale: Scale) -> None:
    """Each kind of step in bfloat16 and with checkpointed layers, in milliseconds and bytes; then rows per second."""
    try:
        from benchmarks.training_cost import PLAIN, PRUNED
    except ImportError as error:
        raise NotPossibleError(f"{error.name} is not installed") from error
    works: dict[str, Any] = {}
    for kind in (PLAIN, PRUNED):
        works[kind] = partial(_steps, scale, kind, checkpointing=False)
        works[f"{kind}, checkpointed layers"] = partial(_steps, scale, kind, checkpointing=True)
    works["evaluation and teacher's answers"] = partial(_answers, scale)
    for name, work in works.items():
        record.part(name, work)


def _shape(scale: Scale) -> Any:
    from benchmarks.shapes import NAMED

    if scale.device != "cpu":
        return NAMED["t5-base"]
    return replace(NAMED["g2p"], d_model=16, num_heads=2, d_kv=8, d_ff=16, layers=2, source_tokens=4, new_tokens=3)


def _steps(scale: Scale, kind: str, *, checkpointing: bool) -> dict[str, Any]:
    """The median time of an update, and the peak memory over all of them, weights included."""
    from benchmarks.training_cost import Stepper

    release(scale.device)
    rows = 2 if scale.device == "cpu" else 32
    precision = "float32" if scale.device == "cpu" else "bfloat16"
    options = argparse.Namespace(
        batch_size=rows, precision=precision, device=scale.device, gradient_checkpointing=checkpointing
    )
    shape = _shape(scale)
    with tempfile.TemporaryDirectory() as folder:
        stepper = Stepper(kind, shape, max(1, shape.layers // 4), options, Path(folder))
        times = sorted(stepper.step() for _ in range(3 + scale.repeats))
    return {"rows": rows, "step_ms": times[len(times) // 2], **peak_memory(scale.device)}


def _answers(scale: Scale) -> dict[str, Any]:
    """Rows per second of `predict`, the load included, which evaluation and the teacher's answers go through."""
    from benchmarks.shapes import build
    from benchmarks.training_cost import random_tokenizer
    from model_store.model.model import Model
    from nash.measuring.assess import evaluation_config
    from nash.measuring.evaluate import predict
    from nash.recipes.recipe import DataRecipe

    release(scale.device)
    shape = _shape(scale)
    rows = 4 if scale.device == "cpu" else _ROWS
    here = Path()
    lengths = {"max_source_tokens": shape.source_tokens, "max_target_tokens": shape.new_tokens}
    data = DataRecipe(train=here, validation=here, **lengths)
    with tempfile.TemporaryDirectory() as folder:
        build(shape).save_pretrained(folder)
        tokenizer = random_tokenizer(shape)
        tokenizer.save_pretrained(folder)
        text = tokenizer.decode([3 + number % (shape.vocab_size - 3) for number in range(shape.source_tokens)])
        model = Model.open(Path(folder))
        taken_s = seconds(scale.device, lambda: predict(model, [text] * rows, evaluation_config(data, scale.device)))
    return {"rows": rows, "rows_per_s": rows / taken_s, **peak_memory(scale.device)}
