"""The losses of training and distillation, as functions of tensors. Those that take a teacher's scores overwrite them.

Axes: B batch, T target positions, S source positions, V vocabulary, D model width. Sums over real tokens are
divided by `items`, the number of real target tokens in the whole update, so gradients depend neither on how an
update is split into micro-batches nor on padding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nash.data.examples import IGNORED

_NUMBERS_AT_ONCE = 2**21  # of a matrix of logits: some megabytes
_SMALLEST_NORM = 1e-6  # a hidden state of zeros must not divide by zero


def cross_entropy(
    logits_BTV: Tensor, labels_BT: Tensor, items: Tensor | int | None, *, smoothing: float = 0.0
) -> Tensor:
    """Task loss in nats per token; if `items` is None, it is the number of real tokens in this batch.

    With label smoothing, the target is (1 - smoothing) of the label plus an equal share of the rest for each of the V
    tokens (Szegedy et al., 2016).
    """
    total: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits_BTV.flatten(0, 1), labels_BT.flatten(), smoothing
    )
    return total / _items(labels_BT, items)


def prediction_distillation(
    student_BTV: Tensor,
    teacher_BTV: Tensor,
    labels_BT: Tensor,
    temperature: float,
    items: Tensor | int | None,
) -> Tensor:
    """KL(teacher || student) at `temperature`, times its square (Hinton et al., 2015), in nats per real token.

    If the student's scores need a gradient, it overwrites the teacher's scores and takes no other memory.
    """
    weights = (0.0, 1.0)
    return task_and_prediction(student_BTV, teacher_BTV, labels_BT, temperature, items, weights=weights).loss


@dataclass(frozen=True, kw_only=True)
class TokenLosses:
    """The losses of a batch's tokens: the weighted sum to minimize, and its parts, which have no gradient."""

    loss: Tensor
    task: Tensor
    prediction: Tensor


def task_and_prediction(
    student_BTV: Tensor,
    teacher_BTV: Tensor,
    labels_BT: Tensor,
    temperature: float,
    items: Tensor | int | None,
    *,
    weights: tuple[float, float],
    smoothing: float = 0.0,
) -> TokenLosses:
    """The sum of `cross_entropy` and `prediction_distillation`, each times its weight in `weights`.

    The gradient of the sum overwrites the teacher's scores, and the student's scores are not kept.
    """
    rows_NV = student_BTV.flatten(0, 1), teacher_BTV.flatten(0, 1)
    coefficients = weights[0], weights[1] * temperature**2
    items = _items(labels_BT, items)
    loss, task, divergence = _TokenLosses.apply(  # type: ignore[no-untyped-call]
        *rows_NV, labels_BT.flatten(), temperature, coefficients, smoothing
    )
    return TokenLosses(
        loss=loss / items, task=weights[0] * task / items, prediction=coefficients[1] * divergence / items
    )


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy summed over the rows [N, V] that have a label; the gradient as in `_TokenLosses`.

    Its gradient is the one other matrix of the size of the scores that a step has.
    """

    @staticmethod
    def forward(ctx: Any, scores_NV: Tensor, labels_N: Tensor, smoothing: float) -> Tensor:
        total = torch.zeros((), device=scores_NV.device)
        learns = ctx.needs_input_grad[0]
        gradient_NV = torch.empty_like(scores_NV) if learns else None
        half = scores_NV.dtype != torch.float32
        for part in _parts(scores_NV):
            padding_R1, label_R1 = (labels_N[part] == IGNORED)[:, None], labels_N[part, None].clamp(min=0)
            scores = scores_NV[part].float()
            probability = torch.empty_like(scores) if gradient_NV is None or half else gradient_NV[part]
            torch.softmax(scores, dim=-1, out=probability)
            # The likeliest token's probability is at least 1 / V, so its logarithm is exact: one exponential is enough.
            normalizer_R1 = scores.amax(1, keepdim=True) - probability.amax(1, keepdim=True).log()
            loss_R1 = normalizer_R1 - (1 - smoothing) * scores.gather(1, label_R1)
            if smoothing:
                loss_R1 -= smoothing * scores.mean(1, keepdim=True)
            total += loss_R1.masked_fill_(padding_R1, 0.0).sum()
            if gradient_NV is not None:
                away_R1 = torch.full_like(label_R1, smoothing - 1, dtype=probability.dtype)
                gradient = probability.scatter_add_(1, label_R1, away_R1)
                if smoothing:
                    gradient.sub_(smoothing / scores.shape[1])
                gradient.masked_fill_(padding_R1, 0.0)
                if half:
                    gradient_NV[part] = gradient
        ctx.gradient_NV = gradient_NV
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor, None, None]:
        return _scaled_once(ctx, of_loss), None, None


class _TokenLosses(torch.autograd.Function):
    """Cross-entropy, and KL(teacher || student) at a temperature, summed over the rows [N, V] that have a label.

    Autograd would keep half a dozen matrices of the size of the logits, which are the largest tensors of a step if the
    vocabulary is large. Here the gradient is computed together with the sums, a few rows at a time, in float32:
    softmax(student) minus the label's smoothed distribution, and softmax(student) - softmax(teacher) at the
    temperature.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_NV: Tensor,
        teacher_NV: Tensor,
        labels_N: Tensor,
        temperature: float,
        coefficients: tuple[float, float],
        smoothing: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        task, divergence = (torch.zeros((), device=student_NV.device) for _ in range(2))
        learns = ctx.needs_input_grad[0]
        gradient_NV = teacher_NV if teacher_NV.dtype == student_NV.dtype else torch.empty_like(student_NV)
        for part in _parts(student_NV):
            padding_R1, label_R1 = (labels_N[part] == IGNORED)[:, None], labels_N[part, None].clamp(min=0)
            scores = student_NV[part].float()
            student = F.log_softmax(scores, dim=-1)
            task += _label_loss(student, label_R1, padding_R1, smoothing)
            soft_student = student if temperature == 1 else F.log_softmax(scores / temperature, dim=-1)
            teacher = F.log_softmax(teacher_NV[part].float() / temperature, dim=-1)
            probability = teacher.exp()
            divergence += teacher.sub_(soft_student).mul_(probability).masked_fill_(padding_R1, 0.0).sum()
            if learns:
                towards_teacher = soft_student.exp().sub_(probability).mul_(coefficients[1] / temperature)
                gradient = _label_gradient(student, label_R1, smoothing).mul_(coefficients[0]).add_(towards_teacher)
                gradient_NV[part] = gradient.masked_fill_(padding_R1, 0.0)
        ctx.gradient_NV = gradient_NV if learns else None
        ctx.mark_non_differentiable(task, divergence)
        return coefficients[0] * task + coefficients[1] * divergence, task, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        return _scaled_once(ctx, of_loss), None, None, None, None, None


def _parts(scores_NV: Tensor) -> Iterator[slice]:
    """Rows that are few enough to work on at once."""
    count = max(1, _NUMBERS_AT_ONCE // scores_NV.shape[1])
    return (slice(start, start + count) for start in range(0, len(scores_NV), count))


def _label_loss(logs_RV: Tensor, label_R1: Tensor, padding_R1: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of log-probabilities with the smoothed labels, summed over the rows without padding."""
    loss_R1 = (1 - smoothing) * logs_RV.gather(1, label_R1)
    if smoothing:
        loss_R1 += smoothing * logs_RV.mean(1, keepdim=True)
    return -loss_R1.masked_fill_(padding_R1, 0.0).sum()


def _label_gradient(logs_RV: Tensor, label_R1: Tensor, smoothing: float) -> Tensor:
    """The gradient of `_label_loss` by the scores, in place of their log-probabilities."""
    away_R1 = torch.full_like(label_R1, smoothing - 1, dtype=logs_RV.dtype)
    gradient_RV = logs_RV.exp_().scatter_add_(1, label_R1, away_R1)
    return gradient_RV.sub_(smoothing / logs_RV.shape[1]) if smoothing else gradient_RV


def _scaled_once(ctx: Any, of_loss: Tensor) -> Tensor:
    """The stored gradient times that of the loss, in place: there is one backward pass."""
    gradient_NV, ctx.gradient_NV = ctx.gradient_NV, None
    assert gradient_NV is not None, "the gradient is used up"
    scaled: Tensor = gradient_NV.mul_(of_loss.to(gradient_NV.dtype))
    return scaled


def hidden_error(student_BLD: Tensor, teacher_BLD: Tensor, mask_BL: Tensor, items: Tensor | int | None) -> Tensor:
    """Squared distance of hidden states over the teacher's squared norm, summed where the mask is true, over `items`.

    The quotient has no scale, so one weight suits every model and layer (SquareHead, arXiv 2310.06927). It is taken at
    each position: positions of a large norm, such as T5's last layers have, do not outweigh the others, and
    micro-batches add up. L is S or T; `items` is the number of real positions in the whole update; None means those of
    this batch.
    """
    # All positions, and padding counted as zero: to select the real ones, a GPU would have to tell how many they are.
    teacher_BLD = teacher_BLD.float()
    distance_BL = (student_BLD.float() - teacher_BLD).square().sum(-1)
    norm_BL = teacher_BLD.square().sum(-1).clamp(min=_SMALLEST_NORM)
    error_BL = (distance_BL / norm_BL).masked_fill(~mask_BL, 0.0)
    return error_BL.sum() / (mask_BL.sum() if items is None else items)


def _items(labels_BT: Tensor, items: Tensor | int | None) -> Tensor | int:
    return (labels_BT != IGNORED).sum().clamp(min=1) if items is None else items


def share_of_update(labels_BT: Tensor, items: Tensor | int | None) -> Tensor:
    """The fraction of an update's real target tokens that this micro-batch holds; 1 if `items` is None."""
    here = (labels_BT != IGNORED).sum()
    return here / items if items is not None else torch.ones((), device=labels_BT.device)
