"""The structure for a budget of time: how wide every sublayer of both stacks is, and which decoder layers stay.

For each number of decoder layers, the layers that stay closest to the whole teacher, and the widths that lose least
within the budget: their losses come from `measure_widths`, their times from the engine (`LatencyTable`). Both are
additive models; after ZipLM (arXiv 2302.04089), which finds one structure with them. A loss before training says little
about depth, because training makes up for dropped layers far better than for narrow ones. So there is a candidate for
every depth, and a short training decides between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from transformers import PreTrainedModel

from model_store.model.config import layout_of, with_kept
from model_store.model.layout import Sublayer
from model_store.model.spec import ModelSpec, shortened
from nash.costs.latency_table import LatencyTable
from nash.structure.calibration import TeacherDistance, closest_layers
from nash.structure.compaction import shorten_decoder
from nash.structure.knapsack import Option, cheapest
from nash.structure.widths import Width


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What stays of a dense model."""

    decoder_layers: tuple[int, ...]  # by their numbers in the dense decoder
    kept: dict[str, tuple[int, ...]]  # parts of each sublayer of the shortened model, by its output matrix
    predicted_ms: float  # of a whole answer
    loss: float  # expected before training, in nats per target token

    def spec(self, dense: ModelSpec) -> ModelSpec:
        """The shape that is left of the dense model's."""
        return with_kept(shortened(dense, self.decoder_layers), self.kept)

    def document(self) -> dict[str, Any]:
        """The structure as one JSON object."""
        return asdict(self)

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """The structure that `document` was made from."""
        kept = {name: tuple(parts) for name, parts in document["kept"].items()}
        return cls(**(document | {"kept": kept, "decoder_layers": tuple(document["decoder_layers"])}))


def structure_of_depth(
    depth: int,
    teacher: PreTrainedModel,
    dense: ModelSpec,
    widths: Mapping[str, Sequence[Width]],
    table: LatencyTable,
    budget_ms: float,
    distance: TeacherDistance,
) -> Structure | None:
    """The best structure within the budget with `depth` decoder layers; None if nothing is within it.

    `dense` is the teacher's shape, and `widths` are those of its sublayers.
    """
    if _narrowed(dense, tuple(range(depth)), widths, table, budget_ms) is None:
        return None  # whatever the layers: they all take the same time
    layers = closest_layers(teacher, depth, distance)
    narrowed = _narrowed(dense, layers, widths, table, budget_ms)
    assert narrowed is not None
    kept = {name: width.kept for name, width in narrowed.items()}
    spec = with_kept(shortened(dense, layers), kept)
    return Structure(
        decoder_layers=layers,
        kept=kept,
        predicted_ms=table.predict(spec).total_ms,
        loss=distance.of(shorten_decoder(teacher, layers), same_encoder=True) + sum(w.loss for w in narrowed.values()),
    )


def _narrowed(
    dense: ModelSpec,
    layers: tuple[int, ...],
    widths: Mapping[str, Sequence[Width]],
    table: LatencyTable,
    budget_ms: float,
) -> dict[str, Width] | None:
    """The width of every sublayer of the model with these decoder layers; None if none is within the budget."""
    sublayers = layout_of(shortened(dense, layers)).sublayers()
    by_place = {_place(s, range(dense.dense_decoder_layers)): widths[s.out] for s in layout_of(dense).sublayers()}
    choices = [by_place[_place(s, layers)] for s in sublayers]
    items = [
        [
            Option(cost=table.sublayer_ms(s.stack, s.kind, len(width.kept) / s.parts), loss=width.loss)
            for width in choice
        ]
        for s, choice in zip(sublayers, choices, strict=True)
    ]
    numbers = cheapest(items, budget_ms - table.fixed_ms)
    if numbers is None:
        return None
    return {s.out: choice[number] for s, choice, number in zip(sublayers, choices, numbers, strict=True)}


def _place(sublayer: Sublayer, decoder_layers: Sequence[int]) -> tuple[str, int, str]:
    """Where a sublayer stands in the dense model; `decoder_layers` are those of the sublayer's own model."""
    layer = sublayer.layer if sublayer.stack == "encoder" else decoder_layers[sublayer.layer]
    return sublayer.stack, layer, sublayer.kind
