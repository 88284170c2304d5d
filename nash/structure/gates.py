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


def harden(ranks: list[Tensor], weights: list[float], target: float, *, across: Tensor | None = None) -> list[Tensor]:
    """Decide which gates stay; return boolean tensors of the ranks' shapes.

    Gates close in the order of their ranks (usually open probabilities), the lowest first, until the weights they hold
    reach the target. Each gate of tensor i holds `weights[i]`. Of equal gates, the one listed first closes first. The
    realised sparsity is the nearest to the target that this order allows: within one gate.

    `across` are the ranks of gates that each hold an equal share of every weight, whatever else is open; at least one
    of them stays. Their decision comes last in the result.
    """
    total = sum(r.numel() * w for r, w in zip(ranks, weights, strict=True))
    shares = 0 if across is None else across.numel()
    every = ranks if across is None else [*ranks, across]
    ranked = sorted(
        (rank, i, j) for i, tensor in enumerate(every) for j, rank in enumerate(tensor.detach().flatten().tolist())
    )
    keep = [torch.ones(r.numel(), dtype=torch.bool) for r in every]
    closed, closed_shares = 0.0, 0
    for _, i, j in ranked:
        is_share = i == len(ranks)
        if is_share and closed_shares + 1 == shares:
            continue
        after = (closed, closed_shares + 1) if is_share else (closed + weights[i], closed_shares)
        reached, so_far = (
            total - (total - held) * ((shares - cut) / shares if shares else 1)
            for held, cut in (after, (closed, closed_shares))
        )
        if abs(reached - target * total) >= abs(so_far - target * total):
            break
        keep[i][j] = False
        closed, closed_shares = after
    return [k.view(r.shape) for k, r in zip(keep, every, strict=True)]
