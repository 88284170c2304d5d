"""Hidden-state distillation: which layers are compared, and the maps between them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nash import ranks
from nash.training import losses


class DistillationMaps(nn.Module):
    """Linear maps from the student's hidden states to the teacher's, initialised to the identity.

    A submodule of the student, so that checkpoints hold it. `hidden`: the teacher's dimensions that the student has.
    """

    def __init__(self, width: int, decoder_layers: int, hidden: Sequence[int] | None = None) -> None:
        super().__init__()
        own = range(width) if hidden is None else hidden
        self.encoder = _identity(width, own)
        self.decoder = nn.ModuleList(_identity(width, own) for _ in range(decoder_layers))


def _identity(width: int, own: Sequence[int]) -> nn.Linear:
    layer = nn.Linear(len(own), width, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[list(own), list(range(len(own)))] = 1.0
    return layer


def compared_layers(total: int, count: int = 4) -> tuple[int, ...]:
    """The teacher's encoder layers that are compared: the ends of `count` equal parts (all, if there are fewer)."""
    parts = min(total, count)
    return tuple((k + 1) * total // parts - 1 for k in range(parts))


def match_layers(cost_TS: Tensor) -> Tensor:
    """For each teacher layer, the student layer to compare it with [T]: the cheapest choice that keeps the order.

    This is the dynamic layer matching of CoFi (arXiv 2204.00408), as an exact minimum over all non-decreasing choices.
    The choice stays on the device of the costs: reading it would make the host wait for the device in every step.
    """
    total_S, back = cost_TS[0], []
    for cost_S in cost_TS[1:]:
        # Of the layers up to s, the cheapest for the teacher layers so far, and which one it is.
        cheapest_S, came_from_S = total_S.cummin(0)
        total_S = cost_S + cheapest_S
        back.append(came_from_S)
    choice = [total_S.argmin(0, keepdim=True)]
    for came_from_S in reversed(back):
        choice.append(came_from_S.index_select(0, choice[-1]))
    return torch.cat(choice[::-1])


def encoder_loss(
    student_BSD: list[Tensor],
    teacher_BSD: list[Tensor],
    layer_map: nn.Module,
    mask_BS: Tensor,
    items: Tensor | int | None,
    same: Sequence[int] | None = None,
) -> Tensor:
    """Mean, over the compared teacher layers, of the error of the matching student layer.

    The matching layer is the nearest that keeps the order or, if `same` is given, the layer that `same` names for each
    teacher layer. Errors are divided by `items`, the number of real source positions in the whole update. The nearest
    is that of the whole batch, of which each process of a run has some rows.
    """
    picked: Sequence[Tensor] | Tensor
    if same is None:
        with torch.no_grad():
            mapped = [layer_map(state) for state in student_BSD]
            errors = [losses.hidden_error(s, t, mask_BS, 1) for t in teacher_BSD for s in mapped]
            cost_TS = ranks.sum_of(torch.stack(errors)).view(len(teacher_BSD), len(mapped))
        picked = torch.stack(student_BSD).index_select(0, match_layers(cost_TS))
    else:
        picked = [student_BSD[s] for s in same]
    pairs = zip(picked, teacher_BSD, strict=True)
    return torch.stack([losses.hidden_error(layer_map(s), t, mask_BS, items) for s, t in pairs]).mean()


def decoder_loss(
    student_BTD: list[Tensor],
    teacher_BTD: list[Tensor],
    layer_maps: nn.ModuleList,
    mask_BT: Tensor,
    items: Tensor | int | None,
) -> Tensor:
    """Mean error between each kept layer and the teacher layer at the end of the block it replaces.

    Errors are divided by `items`, the number of real target positions in the whole update.
    """
    triples = zip(student_BTD, teacher_BTD, layer_maps, strict=True)
    return torch.stack([losses.hidden_error(layer_map(s), t, mask_BT, items) for s, t, layer_map in triples]).mean()


@contextmanager
def recorded(layers: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Within the block, a forward pass through a stack's layers appends each layer's output [B, L, D] to the list."""
    states: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, outputs: Tensor | tuple[Tensor, ...]) -> None:
        states.append(outputs if isinstance(outputs, Tensor) else outputs[0])

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
