"""Attention of one query per head over cached keys and values.

Axes: N running sequences, H heads of one layer, R = N*H rows of attention, T positions in use, E width of a head.

Attention is built once over views of a cache and called at every step while N and T stay the same. It takes queries
[R, 1, E], already scaled, and an additive mask [R, 1, T] or None, and returns the context [R, 1, E].
"""

from typing import Protocol

import torch
from torch import Tensor


class Attention(Protocol):
    def __call__(self, query_R1E: Tensor, mask_R1T: Tensor | None) -> Tensor: ...


class CachedAttention:
    """Over views of keys and values, by two batched matrix products."""

    def __init__(self, keys_NHTE: Tensor, values_NHTE: Tensor) -> None:
        self._keys_RET = keys_NHTE.flatten(0, 1).transpose(1, 2)
        self._values_RTE = values_NHTE.flatten(0, 1)

    def __call__(self, query_R1E: Tensor, mask_R1T: Tensor | None) -> Tensor:
        if mask_R1T is None:
            scores_R1T = torch.bmm(query_R1E, self._keys_RET)
        else:
            scores_R1T = torch.baddbmm(mask_R1T, query_R1E, self._keys_RET)
        return torch.bmm(scores_R1T.softmax(-1), self._values_RTE)


class GatheredAttention:
    """Over a cache's slots in any order, any number of times each: they are copied at every call."""

    def __init__(self, cache_SH2CE: Tensor, slots_N: Tensor, length: int) -> None:
        self._cache_SH2TE = cache_SH2CE.narrow(3, 0, length)
        self._slots_N = slots_N

    def __call__(self, query_R1E: Tensor, mask_R1T: Tensor | None) -> Tensor:
        keys_NHTE, values_NHTE = self._cache_SH2TE.index_select(0, self._slots_N).unbind(2)
        return CachedAttention(keys_NHTE, values_NHTE)(query_R1E, mask_R1T)
