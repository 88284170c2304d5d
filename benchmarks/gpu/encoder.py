"""The encoder stage: groupings of sources and kinds of attention, with new and with known shapes."""

import statistics
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.answers import engine_config
from benchmarks.gpu.device import cudnn_attention, on_device, peak_memory, release, repeat, seconds
from benchmarks.gpu.random_engine import load
from benchmarks.gpu.shapes import Scale, make_sources
from benchmarks.gpu.staged import Recorder
from server.engine.engine import Engine
from server.engine.interface.parameters import GenerationParameters
from server.engine.scheduler import BATCH_POSITIONS, group_by_length
from server.engine.sequence import Sequence

# The assumed cost of another batch, in positions: the engine's value, one that should suit an H100, and a prohibitive
# one.
_GROUPINGS = {
    "as the engine groups": BATCH_POSITIONS,
    "a batch costs 448 positions": 448,
    "all at once": 10**9,
}


@on_device
def encoder(record: Recorder, scale: Scale) -> None:
    """Flan-T5-XL's encoder on the same batches as its answers."""
    works = {
        f"batch {batch}, {grouping}, cuDNN {cudnn}": partial(_measure, record, scale, batch, grouping, cudnn)
        for batch in scale.batches
        for cudnn in ("on", "off")
        for grouping in _GROUPINGS
    }
    config = engine_config(scale, slots=max(scale.batches), graphs="off")
    record.parts(works, lambda: load(record, "load", scale.shapes["flan-t5-xl"], config))


def _measure(record: Recorder, scale: Scale, batch: int, grouping: str, cudnn: str, engine: Engine) -> dict[str, Any]:
    parameters = GenerationParameters(max_new_tokens=1)
    sources = make_sources(engine.spec, batch, scale.source_tokens)
    sequences = [Sequence(id=i, source_ids=source, parameters=parameters) for i, source in enumerate(sources)]
    groups = group_by_length(sequences, _GROUPINGS[grouping])
    padding = 0

    @torch.inference_mode()
    def encode() -> None:
        nonlocal padding
        padding, slot = 0, 0
        for group in groups:
            slots = [[slot + i] for i in range(len(group))]
            padding += engine._backend.encode([sequence.source_ids for sequence in group], slots)
            slot += len(group)

    release(scale.device)
    with cudnn_attention(cudnn == "on"):
        first_s = seconds(scale.device, encode)
        usual_s = statistics.median(repeat(record, scale, lambda: seconds(scale.device, encode)))
    tokens = sum(map(len, sources))
    record.line(
        f"batch {batch}, {grouping}, cuDNN {cudnn}: {1e3 * usual_s:.1f} ms in {len(groups)} groups, "
        f"the first time {1e3 * first_s:.1f} ms, {padding / tokens:.1%} padding"
    )
    row = {"ms": 1e3 * usual_s, "first_ms": 1e3 * first_s, "groups": len(groups), "tokens": tokens}
    return row | {"padding": padding} | peak_memory(scale.device)
