"""A machine whose costs are known, in place of the engine's measurements."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from nash.measuring.figures import Latency
from nash.measuring.latency import Workload


def by_sublayer(spec: ModelSpec) -> Latency:
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


@dataclass
class KnownCosts:
    """What stands in for the engine: it computes the times, and keeps what it is asked."""

    times: Callable[[ModelSpec], Latency]
    measured: list[list[ModelSpec]] = field(default_factory=list)
    workloads: list[Workload] = field(default_factory=list)

    def measure(self, shapes: Sequence[ModelSpec]) -> list[Latency]:
        """The times of shapes side by side."""
        self.measured.append(list(shapes))
        return [self.times(spec) for spec in shapes]


def set_costs(monkeypatch: pytest.MonkeyPatch, times: Callable[[ModelSpec], Latency]) -> KnownCosts:
    """Let every stage that measures on the engine take these times."""
    costs = KnownCosts(times)

    def engine_measure(dense: Model, workload: Workload) -> Callable[[Sequence[ModelSpec]], list[Latency]]:
        costs.workloads.append(workload)
        return costs.measure

    for module in ("plan", "stages", "structure_stages"):
        monkeypatch.setattr(f"nash.pruning.{module}.engine_measure", engine_measure)
    return costs
