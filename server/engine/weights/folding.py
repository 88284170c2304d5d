"""Folds everything linear in an encoder-decoder into its matrices; `network` states the rules.

Axes: I inputs and O outputs of a matrix, D model width, HE heads times head width.
"""

import torch
from torch import Tensor

from server.engine.weights.network import AttentionWeights, Heads, Linear, Norm


def fold_norm(linear: Linear, norm: Norm | None) -> Linear:
    """`linear` with the norm's weights folded in: it takes the norm's output without weights."""
    if norm is None:
        return linear
    bias_O = linear.bias_O
    if norm.shift_D is not None:
        shift_O = torch.mv(linear.weight_OI, norm.shift_D)
        bias_O = shift_O if bias_O is None else bias_O + shift_O
    return Linear(weight_OI=linear.weight_OI * norm.gain_D, bias_O=bias_O)


def scaled(linear: Linear, factor: float) -> Linear:
    """The map times `factor`."""
    if factor == 1.0:
        return linear
    bias_O = linear.bias_O
    return Linear(weight_OI=linear.weight_OI * factor, bias_O=None if bias_O is None else bias_O * factor)


def fold_attention(
    *,
    heads: Heads,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    after: Norm | None,
    scale: float,
) -> AttentionWeights:
    """One attention from maps that take a norm's output without weights; `scale` is that of the scores."""
    bias_D = out.bias_O
    if value.bias_O is not None:
        passed_D = torch.mv(out.weight_OI, value.bias_O)
        bias_D = passed_D if bias_D is None else bias_D + passed_D
    return AttentionWeights(
        heads=heads,
        query=scaled(query, scale),
        key=Linear(weight_OI=key.weight_OI, bias_O=None),
        value=Linear(weight_OI=value.weight_OI, bias_O=None),
        out=Linear(weight_OI=out.weight_OI, bias_O=bias_D),
        after=after,
    )


def by_head(parts_OI: list[Tensor], head_dim: int) -> Tensor:
    """The matrices (or biases) of one attention in one, rows ordered by head, then by matrix: [H*parts*E, ...]."""
    per_head = [part.view(-1, head_dim, *part.shape[1:]) for part in parts_OI]
    return torch.stack(per_head, dim=1).flatten(0, 2)
