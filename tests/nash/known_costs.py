"""A machine whose costs are known, in place of the engine's measurements."""

from collections.abc import Callable, Sequence

import pytest

from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from nash.measuring.figures import Latency
from nash.measuring.latency import Workload


def times(spec: ModelSpec) -> Latency:
    """A whole encoder layer takes 1 ms, half for each sublayer; a decoder's sublayer 1 ms, 0.4 of it if present."""
    encode_ms = sum(len(s.heads) / spec.num_heads + s.ffn / spec.d_ff for s in spec.encoder) / 2
    widths = [
        width
        for layer in spec.decoder
        for width in (
            len(layer.self_heads) / spec.num_heads,
            len(layer.cross_heads) / spec.num_heads,
            layer.ffn / spec.decoder_d_ff,
        )
    ]
    decode_ms = sum(0.4 + 0.6 * width for width in widths if width)
    return Latency(encoder_ms=encode_ms, step_ms=1.0, total_ms=encode_ms + decode_ms)


def set_costs(monkeypatch: pytest.MonkeyPatch) -> list[list[ModelSpec]]:
    """Let every plan measure `times`; return the shapes that are measured, as they come."""
    calls: list[list[ModelSpec]] = []

    def engine_measure(dense: Model, workload: Workload) -> Callable[[Sequence[ModelSpec]], list[Latency]]:
        def measure(shapes: Sequence[ModelSpec]) -> list[Latency]:
            calls.append(list(shapes))
            return [times(spec) for spec in shapes]

        return measure

    for module in ("plan", "structure_stages"):
        monkeypatch.setattr(f"nash.pruning.{module}.engine_measure", engine_measure)
    return calls
