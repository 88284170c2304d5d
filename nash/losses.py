"""The losses of training and distillation, as pure functions of tensors.

Axes: B batch, T target positions, S source positions, V vocabulary, D model width. Sums over real tokens are
divided by `items`, the number of real target tokens in the whole update: gradients then do not depend on how an
update is cut into micro-batches, nor on padding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nash.data import IGNORED


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
    kept_BT = labels_BT != IGNORED
    student_NV = F.log_softmax(student_BTV[kept_BT].float() / temperature, dim=-1)
    teacher_NV = F.log_softmax(teacher_BTV[kept_BT].float() / temperature, dim=-1)
    total = F.kl_div(student_NV, teacher_NV, reduction="sum", log_target=True)
    return total * temperature**2 / _items(labels_BT, items)


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
