"""The losses of training and distillation, as pure functions of tensors.

Axes: B batch, T target positions, S source positions, V vocabulary, D model width. Sums over real tokens are
divided by `items`, the number of real target tokens in the whole update: gradients then do not depend on how an
update is cut into micro-batches, nor on padding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nash.data import IGNORED

_NUMBERS_AT_ONCE = 2**21  # of a matrix of logits; some megabytes


def cross_entropy(logits_BTV: Tensor, labels_BT: Tensor, items: Tensor | int | None) -> Tensor:
    """Task loss in nats a token; `items` None means the real tokens of this batch."""
    total = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / _items(labels_BT, items)


def prediction_distillation(
    student_BTV: Tensor,
    teacher_BTV: Tensor,
    labels_BT: Tensor,
    temperature: float,
    items: Tensor | int | None,
) -> Tensor:
    """KL(teacher || student) at `temperature`, times its square (Hinton et al., 2015), in nats a real token."""
    kept_N = labels_BT.flatten() != IGNORED
    rows_NV = student_BTV.flatten(0, 1), teacher_BTV.flatten(0, 1)
    total: Tensor = _Divergence.apply(*rows_NV, kept_N, temperature)  # type: ignore[no-untyped-call]
    return total * temperature**2 / _items(labels_BT, items)


class _Divergence(torch.autograd.Function):
    """KL(teacher || student) at a temperature, summed over the rows [N, V] that are kept; in float32.

    Autograd would keep half a dozen matrices of the size of the logits, which are the largest thing in a step where the
    vocabulary is large. Here the gradient, softmax(student) - softmax(teacher), is made with the sum, a few rows at a
    time, and is all that is kept.
    """

    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, teacher_NV: Tensor, kept_N: Tensor, temperature: float) -> Tensor:
        total = torch.zeros((), device=student_NV.device)
        gradient_NV = torch.empty_like(student_NV)
        rows = max(1, _NUMBERS_AT_ONCE // student_NV.shape[1])
        for start in range(0, len(student_NV), rows):
            part = slice(start, start + rows)
            student = F.log_softmax(student_NV[part].float() / temperature, dim=-1)
            teacher = F.log_softmax(teacher_NV[part].float() / temperature, dim=-1)
            padding, probability = ~kept_N[part, None], teacher.exp()
            total += teacher.sub_(student).mul_(probability).masked_fill_(padding, 0.0).sum()
            gradient_NV[part] = student.exp_().sub_(probability).div_(temperature).masked_fill_(padding, 0.0)
        ctx.save_for_backward(gradient_NV)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV * gradient.to(gradient_NV.dtype), None, None, None


def hidden_mse(student_BLD: Tensor, teacher_BLD: Tensor, mask_BL: Tensor, items: Tensor | int | None) -> Tensor:
    """Squared error of hidden states, a mean over the width, summed where the mask is true, divided by `items`.

    L is S or T; `items` is the number of real positions in the whole update, None those of this batch.
    """
    difference_ND = student_BLD[mask_BL].float() - teacher_BLD[mask_BL].float()
    return difference_ND.square().mean(-1).sum() / (mask_BL.sum() if items is None else items)


def _items(labels_BT: Tensor, items: Tensor | int | None) -> Tensor | int:
    return (labels_BT != IGNORED).sum().clamp(min=1) if items is None else items


def share_of_update(labels_BT: Tensor, items: Tensor | int | None) -> Tensor:
    """The fraction of an update's real target tokens that this micro-batch holds; 1 where `items` is None."""
    here = (labels_BT != IGNORED).sum()
    return here / items if items is not None else torch.ones((), device=labels_BT.device)
