"""The losses of training and distillation, as pure functions of tensors.

Axes: B batch, T target positions, S source positions, V vocabulary, D model width. Sums over real tokens are
divided by `items`, the number of real target tokens in the whole update: gradients then do not depend on how an
update is cut into micro-batches, nor on padding.
"""

from collections.abc import Iterator
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
    return task_and_prediction(student_BTV, teacher_BTV, labels_BT, temperature, items)[1]


def task_and_prediction(
    student_BTV: Tensor,
    teacher_BTV: Tensor,
    labels_BT: Tensor,
    temperature: float,
    items: Tensor | int | None,
) -> tuple[Tensor, Tensor]:
    """`cross_entropy` and `prediction_distillation` of the same scores, for the memory of one of them."""
    rows_NV = student_BTV.flatten(0, 1), teacher_BTV.flatten(0, 1)
    task, divergence = _TokenLosses.apply(*rows_NV, labels_BT.flatten(), temperature)  # type: ignore[no-untyped-call]
    items = _items(labels_BT, items)
    return task / items, divergence * temperature**2 / items


class _TokenLosses(torch.autograd.Function):
    """Cross-entropy, and KL(teacher || student) at a temperature, summed over the rows [N, V] that have a label.

    Autograd would keep half a dozen matrices of the size of the logits, which are the largest thing in a step where the
    vocabulary is large. Here nothing is kept but the logits; the gradients, softmax(student) less one at the label, and
    softmax(student) - softmax(teacher) at the temperature, are made into one matrix, a few rows at a time, in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, student_NV: Tensor, teacher_NV: Tensor, labels_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        task, divergence = (torch.zeros((), device=student_NV.device) for _ in range(2))
        for part in _parts(student_NV):
            kept_R = labels_N[part] != IGNORED
            student = student_NV[part].float()
            log_student = F.log_softmax(student, dim=-1)
            at_label = log_student.gather(1, labels_N[part, None].clamp(min=0))[:, 0]
            task -= at_label.masked_fill_(~kept_R, 0.0).sum()
            if temperature != 1:
                log_student = F.log_softmax(student / temperature, dim=-1)
            log_teacher = F.log_softmax(teacher_NV[part].float() / temperature, dim=-1)
            probability = log_teacher.exp()
            terms = log_teacher.sub_(log_student).mul_(probability)
            divergence += terms.masked_fill_(~kept_R[:, None], 0.0).sum()
        ctx.save_for_backward(student_NV, teacher_NV, labels_N)
        ctx.temperature = temperature
        return task, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_task: Tensor, of_divergence: Tensor) -> tuple[Tensor, None, None, None]:
        student_NV, teacher_NV, labels_N = ctx.saved_tensors
        gradient_NV = torch.empty_like(student_NV)
        for part in _parts(student_NV):
            padding_R1 = (labels_N[part] == IGNORED)[:, None]
            student = student_NV[part].float()
            gradient = F.softmax(student, dim=-1)
            towards_teacher = gradient.clone() if ctx.temperature == 1 else F.softmax(student / ctx.temperature, dim=-1)
            towards_teacher.sub_(F.softmax(teacher_NV[part].float() / ctx.temperature, dim=-1))
            ones_R1 = torch.ones_like(padding_R1, dtype=gradient.dtype)
            gradient.scatter_add_(1, labels_N[part, None].clamp(min=0), -ones_R1).mul_(of_task)
            gradient.add_(towards_teacher.mul_(of_divergence / ctx.temperature))
            gradient_NV[part] = gradient.masked_fill_(padding_R1, 0.0)
        return gradient_NV, None, None, None


def _parts(rows_NV: Tensor) -> Iterator[slice]:
    """Rows that are worked on together."""
    count = max(1, _NUMBERS_AT_ONCE // rows_NV.shape[1])
    return (slice(start, start + count) for start in range(0, len(rows_NV), count))


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
