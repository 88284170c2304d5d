"""Cut the inputs of a matrix part by part, the least needed first, while the others make up for it.

The least squares of OBS (Hassibi and Stork, 1993), by whole groups of columns as in ZipLM (arXiv 2302.04089). With the
Gram matrix H of the inputs that a matrix W [O, I] really gets, removing the columns S and refitting the others changes
the squared error of its outputs by

    tr(W_S ((H^-1)_SS)^-1 W_S^T),    W <- W - W_S ((H^-1)_SS)^-1 (H^-1)_S:,

after which H^-1 is updated for the columns that are left. A part is a head or a feed-forward unit: `columns` adjacent
columns.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nash.int4.rounding import DAMPING

# Single columns are removed in groups of this share of a matrix, because each removal updates the whole inverse.
_AT_ONCE = 1 / 256


@dataclass(frozen=True, kw_only=True)
class Elimination:
    """A matrix with some of its parts left."""

    kept: Tensor  # [parts], boolean
    weight_OI: Tensor  # refitted; zero in the columns of removed parts


def eliminate(weight_OI: Tensor, gram_II: Tensor, columns: int, counts: Collection[int]) -> Iterator[Elimination]:
    """Remove parts one after the other; yield the matrix whenever as many are left as `counts` names, most first.

    `gram_II` is X^T X of the inputs X [N, I]. Sums are in float64.
    """
    weight, dtype = weight_OI.double().clone(), weight_OI.dtype
    gram = gram_II.double()
    damping = DAMPING * float(gram.diagonal().mean())
    inverse = torch.linalg.inv(gram + (damping or 1.0) * torch.eye(len(gram)).to(gram))
    parts = weight.shape[1] // columns
    kept = torch.ones(parts, dtype=torch.bool, device=weight.device)
    wanted = sorted(counts, reverse=True)
    left = parts
    for count in wanted:
        while left > count:
            most = max(1, int(_AT_ONCE * parts)) if columns == 1 else 1
            cost = _costs(weight, inverse, columns).masked_fill(~kept, torch.inf)
            chosen = torch.topk(cost, min(most, left - count), largest=False).indices
            _remove(weight, inverse, _columns_of(chosen, columns))
            kept[chosen] = False
            left -= len(chosen)
        yield Elimination(kept=kept.clone(), weight_OI=weight.to(dtype, copy=True))


def _costs(weight: Tensor, inverse: Tensor, columns: int) -> Tensor:
    """By how much the squared error of the outputs would grow without each part, the others refitted; [parts]."""
    if columns == 1:
        return weight.square().sum(0) / inverse.diagonal().clamp(min=torch.finfo(inverse.dtype).tiny)
    parts = weight.shape[1] // columns
    cost = weight.new_zeros(parts)
    for part in range(parts):
        own = slice(part * columns, (part + 1) * columns)
        block = inverse[own, own]
        if bool(block.any()):  # the inverse of a removed part is zero
            cost[part] = (weight[:, own] * torch.linalg.solve(block, weight[:, own].T).T).sum()
    return cost


def _remove(weight: Tensor, inverse: Tensor, removed: Tensor) -> None:
    """Take these columns out and refit the others, in place."""
    step = torch.linalg.solve(inverse[removed][:, removed], inverse[removed])
    weight -= weight[:, removed] @ step
    inverse -= inverse[:, removed] @ step
    weight[:, removed] = 0.0
    inverse[removed] = 0.0
    inverse[:, removed] = 0.0


def _columns_of(parts: Tensor, columns: int) -> Tensor:
    return (parts[:, None] * columns + torch.arange(columns, device=parts.device)).flatten()
