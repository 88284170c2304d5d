"""Hard concrete gates and the sparsity they are driven to: the mathematics, independent of any model.

A gate is a random variable in [0, 1] that is exactly 0 or exactly 1 with positive probability
(Louizos, Welling and Kingma, 2018). Its one parameter, alpha, is the log-odds of being open before stretching.
"""

import math

import torch
from torch import Tensor

BETA = 2.0 / 3.0  # temperature
LOW, HIGH = -0.1, 1.1  # the stretch
MAX_ALPHA = math.log(100.0)
_EPSILON = 1e-6
_SHIFT = BETA * math.log(-LOW / HIGH)


def sample(alpha: Tensor, noise: Tensor) -> Tensor:
    """Draw gates; `noise` is uniform on (0, 1) and has alpha's shape."""
    u = noise.clamp(_EPSILON, 1 - _EPSILON)
    s = torch.sigmoid((torch.logit(u) + alpha) / BETA)
    return (s * (HIGH - LOW) + LOW).clamp(0.0, 1.0)


def deterministic(alpha: Tensor) -> Tensor:
    """The gate's value without noise, stretched and clipped."""
    return (torch.sigmoid(alpha) * (HIGH - LOW) + LOW).clamp(0.0, 1.0)


def open_probability(alpha: Tensor) -> Tensor:
    """P(gate != 0)."""
    return torch.sigmoid(alpha - _SHIFT)


def lagrangian(sparsity: Tensor, target: float, multipliers_2: Tensor) -> Tensor:
    """lambda1 (s - t) + lambda2 (s - t)^2: minimised over the gates, maximised over the two multipliers."""
    gap = sparsity - target
    return multipliers_2[0] * gap + multipliers_2[1] * gap.square()


def scheduled_target(target: float, step: int, warmup_steps: int) -> float:
    """The sparsity to reach at `step`: it rises linearly from 0 over the warm-up, then stays at `target`."""
    return target if step >= warmup_steps else target * step / warmup_steps


def harden(ranks: list[Tensor], weights: list[float], target: float) -> list[Tensor]:
    """Decide which gates stay; return boolean tensors of the ranks' shapes.

    Gates close in the order of their ranks (usually open probabilities), the lowest first, until the weights they hold
    reach the target. Each gate of tensor i holds `weights[i]`. Of equal gates, the one listed first closes first. The
    realised sparsity is the nearest to the target that this order allows: within one gate.
    """
    total = sum(r.numel() * w for r, w in zip(ranks, weights, strict=True))
    ranked = sorted(
        (rank, i, j) for i, tensor in enumerate(ranks) for j, rank in enumerate(tensor.detach().flatten().tolist())
    )
    keep = [torch.ones(r.numel(), dtype=torch.bool) for r in ranks]
    closed = 0.0
    for _, i, j in ranked:
        if abs(closed + weights[i] - target * total) >= abs(closed - target * total):
            break
        keep[i][j] = False
        closed += weights[i]
    return [k.view(r.shape) for k, r in zip(keep, ranks, strict=True)]
