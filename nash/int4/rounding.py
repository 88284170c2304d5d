"""GPTQ: round a matrix to four bits so that its outputs change least on the inputs that it really gets.

Plain rounding takes every weight to its nearest step. GPTQ rounds the inputs one after the other and compensates the
error of each, by least squares, in the weights of the inputs that are not rounded yet (Frantar et al. 2022, "GPTQ").
The only statistic that it needs from the data is the inputs' Gram matrix.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model_store.model.int4 import GROUP

DAMPING = 0.01  # of the inputs' mean square; pulls corrections that the data do not determine towards zero
LEAST, MOST = -8, 7  # the range of the integers
# Candidate steps of a group, as shares of the step that just reaches its largest weight. That step may be negative, as
# the largest weight may become -8. A smaller step clips the largest weights and is finer for all the others.
_SHARES = torch.linspace(0.6, 1.05, 19, dtype=torch.float64)


def round_nearest(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Plain rounding: integers [O, I] and float16 steps [O, G] of G groups of inputs."""
    groups_OGI = _in_groups(weight_OI)
    step_OG1 = (groups_OGI.gather(2, groups_OGI.abs().argmax(2, keepdim=True)) / LEAST).half()
    whole_OI = _nearest(groups_OGI, step_OG1.float()).flatten(1)[:, : weight_OI.shape[1]]
    return whole_OI.to(torch.int8), step_OG1[:, :, 0]


def round_by_data(weight_OI: Tensor, gram_II: Tensor) -> tuple[Tensor, Tensor]:
    """Integers [O, I] and float16 steps [O, G] for which the error |X dW^T|^2 is small; `gram_II` is X^T X."""
    weight = weight_OI.double().clone()
    outputs, inputs = weight.shape
    gram = gram_II.double()
    diagonal = gram.diagonal()
    damping = DAMPING * diagonal.mean()
    damped = gram + (damping if damping > 0 else 1.0) * torch.eye(inputs, dtype=torch.float64)
    steps_OG = _choose_steps(weight, damped.diagonal())
    # The inputs that weigh most go first: most other inputs are then left to compensate their error.
    order = damped.diagonal().argsort(descending=True, stable=True)
    # U from the Cholesky decomposition U^T U of the inverse: row i says how input i's error spreads to later inputs.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True)
    whole_OI = torch.zeros(outputs, inputs, dtype=torch.int8)
    weight = weight[:, order]
    steps = steps_OG.double()
    for start in range(0, inputs, GROUP):
        stop = min(start + GROUP, inputs)
        errors = torch.zeros(outputs, stop - start, dtype=torch.float64)
        for i in range(start, stop):
            step_O = steps[:, order[i] // GROUP]
            q_O = _nearest(weight[:, i], step_O)
            whole_OI[:, order[i]] = q_O.to(torch.int8)
            error_O = (weight[:, i] - q_O * step_O) / upper[i, i]
            weight[:, i:stop] -= error_O[:, None] * upper[i, i:stop]
            errors[:, i - start] = error_O
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return whole_OI, steps_OG


def _choose_steps(weight_OI: Tensor, importance_I: Tensor) -> Tensor:
    """The step that rounds each group best, with inputs weighted by their mean squares: [O, G] in float16."""
    groups_OGI, importance_GI = _in_groups(weight_OI), _in_groups(importance_I[None])
    largest = groups_OGI.gather(2, groups_OGI.abs().argmax(2, keepdim=True))
    best_OG: Tensor = torch.zeros(largest.shape[:2], dtype=torch.float64)
    least_OG = torch.full_like(best_OG, torch.inf)
    for reach in (*_SHARES / LEAST, *_SHARES / MOST):  # map the largest weight to the lowest or the highest integer
        step_OG1 = (largest * reach).half().double()
        error_OG = ((groups_OGI - _nearest(groups_OGI, step_OG1) * step_OG1).square() * importance_GI).sum(2)
        better = error_OG < least_OG
        best_OG, least_OG = torch.where(better, step_OG1[:, :, 0], best_OG), torch.where(better, error_OG, least_OG)
    return best_OG.half()


def _in_groups(weight_OI: Tensor) -> Tensor:
    """[O, G, 32], the last group padded with zeros."""
    return F.pad(weight_OI, (0, -weight_OI.shape[1] % GROUP)).view(len(weight_OI), -1, GROUP)


def _nearest(weight: Tensor, step: Tensor) -> Tensor:
    whole: Tensor = weight / torch.where(step == 0, 1.0, step)
    return whole.round().clamp(LEAST, MOST)
