"""What it costs in quality to narrow each sublayer of a model, measured on data."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model_store.model.layout import Sublayer
from nash.structure.calibration import Batches, TeacherDistance, passes
from nash.structure.elimination import eliminate

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
    watch: Callable[[int], None],
) -> dict[str, list[Width]]:
    """The widths of each sublayer, whole first, by the name of its output matrix.

    The order in which parts go is that of `eliminate`; the loss is measured on the whole model. `watch` receives the
    number of finished sublayers.
    """
    found = {}
    for number, sublayer in enumerate(sublayers, 1):
        matrix = teacher.get_submodule(sublayer.out)
        assert isinstance(matrix, nn.Linear)
        gram = matrix.weight.new_zeros(matrix.in_features, matrix.in_features, dtype=torch.float64)
        for inputs_NI, _ in passes(teacher, sublayer, batches):
            gram += inputs_NI.double().T @ inputs_NI.double()
        widths = [Width(kept=tuple(range(sublayer.parts)), loss=0.0)]
        for left in eliminate(matrix.weight, gram, sublayer.columns, narrower(sublayer)):
            with _weight(matrix, left.weight_OI):
                loss = distance.of(teacher, same_encoder=sublayer.stack == "decoder")
            widths.append(Width(kept=tuple(left.kept.nonzero().flatten().tolist()), loss=loss))
        found[sublayer.out] = widths
        watch(number)
    return found


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
