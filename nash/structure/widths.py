"""What it costs in quality to narrow each sublayer of a model, measured on data."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model_store.model.layout import Sublayer
from nash.structure.calibration import TeacherDistance
from nash.structure.elimination import eliminate
from nash.structure.layer_walk import Batches, LayerWalk

_MOST_HEAD_COUNTS = 7  # numbers of heads that are tried, from none to all but one
_UNIT_SHARES = (0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1, 0.0)  # of a sublayer's units


@dataclass(frozen=True, kw_only=True)
class Width:
    """A width of one sublayer, and what narrowing this sublayer alone to it costs."""

    kept: tuple[int, ...]  # the parts that stay, ascending
    loss: float  # KL(teacher || narrowed) in nats per target token, the other parts refitted

    def document(self) -> dict[str, Any]:
        """The width as one JSON object."""
        return asdict(self)

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """The width that `document` was made from."""
        return cls(kept=tuple(document["kept"]), loss=document["loss"])


@torch.no_grad()
def measure_widths(
    teacher: PreTrainedModel,
    sublayers: Sequence[Sublayer],
    distance: TeacherDistance,
    batches: Batches,
    known: Mapping[str, list[Width]],
    watch: Callable[[dict[str, list[Width]]], None],
) -> dict[str, list[Width]]:
    """The widths of each sublayer, whole first, by the name of its output matrix.

    The order in which parts go is that of `eliminate`, from the inputs on `batches`; the loss is `distance`, of the
    whole model. Sublayers that are `known` already are not measured again. `watch` receives what there is after each.
    """
    found = dict(known)
    for stack, own in groupby(sublayers, key=lambda sublayer: sublayer.stack):
        walk = LayerWalk(teacher, stack, batches)
        for _, layer in groupby(own, key=lambda sublayer: sublayer.layer):
            unknown = [sublayer for sublayer in layer if sublayer.out not in found]
            grams = _grams(walk, teacher, unknown) if unknown else []
            for sublayer, gram_II in zip(unknown, grams, strict=True):
                found[sublayer.out] = _widths(teacher, sublayer, gram_II, distance)
                watch(found)
            walk.advance()
    return found


def _grams(walk: LayerWalk, teacher: PreTrainedModel, sublayers: Sequence[Sublayer]) -> list[Tensor]:
    """X^T X of the inputs X [N, I] of each sublayer's output matrix, in float64."""
    matrices = [_matrix(teacher, sublayer) for sublayer in sublayers]
    grams = [m.weight.new_zeros(m.in_features, m.in_features, dtype=torch.float64) for m in matrices]
    for passed in walk.passes(*sublayers):
        for gram_II, (inputs_NI, _) in zip(grams, passed, strict=True):
            gram_II += inputs_NI.double().T @ inputs_NI.double()
    return grams


def _widths(teacher: PreTrainedModel, sublayer: Sublayer, gram_II: Tensor, distance: TeacherDistance) -> list[Width]:
    matrix = _matrix(teacher, sublayer)
    widths = [Width(kept=tuple(range(sublayer.parts)), loss=0.0)]
    for left in eliminate(matrix.weight, gram_II, sublayer.columns, narrower(sublayer)):
        with _weight(matrix, left.weight_OI):
            loss = distance.of(teacher, same_encoder=sublayer.stack == "decoder")
        widths.append(Width(kept=tuple(left.kept.nonzero().flatten().tolist()), loss=loss))
    return widths


def _matrix(teacher: PreTrainedModel, sublayer: Sublayer) -> nn.Linear:
    matrix = teacher.get_submodule(sublayer.out)
    assert isinstance(matrix, nn.Linear)
    return matrix


def narrower(sublayer: Sublayer) -> list[int]:
    """The numbers of parts to try, fewer than all, descending to none."""
    parts = sublayer.parts
    if sublayer.has_heads:
        step = max(1, -(-parts // _MOST_HEAD_COUNTS))
        return [*range(parts - step, 0, -step), 0]
    return sorted({round(share * parts) for share in _UNIT_SHARES} - {parts}, reverse=True)


@contextmanager
def _weight(matrix: nn.Linear, weight_OI: Tensor) -> Iterator[None]:
    """Within the block, the matrix has these weights."""
    own = matrix.weight.data
    matrix.weight.data = weight_OI.to(own)
    try:
        yield
    finally:
        matrix.weight.data = own
