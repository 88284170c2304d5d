"""T5's position bias: one number for each head and bucket of distance.

Axes: K buckets of distance, H heads of one layer, R distances.
"""

import math

import torch
from torch import Tensor

Heads = tuple[int, ...]


def relative_bucket(relative: Tensor, *, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """Bucket numbers of `relative` = key position - query position, in the same shape.

    Half of the buckets are exact; the rest grow with the logarithm of the distance (Raffel et al. 2020, sec. 2.1).
    The order of operations is that of transformers' T5, so the rounding agrees bit for bit.
    """
    offset = torch.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        offset = (relative > 0).long() * buckets
        distance = relative.abs()
    else:
        distance = -relative.clamp(max=0)
    exact = buckets // 2
    large = exact + (
        torch.log(distance.float() / exact) / math.log(max_distance / exact) * (buckets - exact)
    ).long().clamp(max=buckets - 1 - exact)
    return offset + torch.where(distance < exact, distance, large)


def bias_rows(table_KH: Tensor, heads: Heads, relative_R: Tensor, *, bidirectional: bool, max_distance: int) -> Tensor:
    """The kept heads' bias at each distance [H, R]; the table has all of the dense model's heads."""
    bucket_R = relative_bucket(
        relative_R, bidirectional=bidirectional, buckets=table_KH.shape[0], max_distance=max_distance
    )
    return table_KH[bucket_R.to(table_KH.device)][:, list(heads)].t()
