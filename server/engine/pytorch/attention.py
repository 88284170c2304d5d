"""Attention of one query per head over cached keys and values, in the fastest form for the size.

Axes: N running sequences, H heads of one layer, R = N*H rows of attention, T positions in use, E width of a head.

Each form is built once over views of a cache and called at every step while N and T stay the same. It takes queries
[R, 1, E], already scaled, and an additive mask [R, 1, T] or None, and returns the context [R, 1, E].
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# From this many bytes of keys and values on, one fused pass beats two matrix products: they no longer fit into a core's
# L2 cache.
_FUSED_FROM_BYTES = 2 * 2**20


class Attention(Protocol):
    def __call__(self, query_R1E: Tensor, mask_R1T: Tensor | None) -> Tensor: ...


class ProductAttention:
    """Two batched matrix products: the lowest fixed cost."""

    def __init__(self, keys_NHTE: Tensor, values_NHTE: Tensor) -> None:
        self._keys_RET = keys_NHTE.flatten(0, 1).transpose(1, 2)
        self._values_RTE = values_NHTE.flatten(0, 1)

    def __call__(self, query_R1E: Tensor, mask_R1T: Tensor | None) -> Tensor:
        if mask_R1T is None:
            scores_R1T = torch.bmm(query_R1E, self._keys_RET)
        else:
            scores_R1T = torch.baddbmm(mask_R1T, query_R1E, self._keys_RET)
        return torch.bmm(scores_R1T.softmax(-1), self._values_RTE)


class SumAttention:
    """Products and sums: half precision has no fast matrix product of single rows on a CPU."""

    def __init__(self, keys_NHTE: Tensor, values_NHTE: Tensor) -> None:
        self._keys_RTE = keys_NHTE.flatten(0, 1)
        self._values_RTE = values_NHTE.flatten(0, 1)

    def __call__(self, query_R1E: Tensor, mask_R1T: Tensor | None) -> Tensor:
        scores_RT1 = (self._keys_RTE * query_R1E).sum(-1, keepdim=True)
        if mask_R1T is not None:
            scores_RT1 = scores_RT1 + mask_R1T.transpose(1, 2)
        return (self._values_RTE * scores_RT1.softmax(1)).sum(1, keepdim=True)


class FusedAttention:
    """One pass over keys and values."""

    def __init__(self, keys_NHTE: Tensor, values_NHTE: Tensor) -> None:
        self._keys_NHTE = keys_NHTE
        self._values_NHTE = values_NHTE
        self._sequences, self._heads = keys_NHTE.shape[:2]

    def __call__(self, query_R1E: Tensor, mask_R1T: Tensor | None) -> Tensor:
        by_head = (self._sequences, self._heads, 1, -1)
        context_NH1E = F.scaled_dot_product_attention(
            query_R1E.view(by_head),
            self._keys_NHTE,
            self._values_NHTE,
            attn_mask=None if mask_R1T is None else mask_R1T.view(by_head),
            scale=1.0,
        )
        return context_NH1E.flatten(0, 1)


class GatheredAttention:
    """Over a cache's slots in any order, any number of times each: they are copied at every call."""

    def __init__(self, cache_SH2CE: Tensor, slots_N: Tensor, length: int) -> None:
        self._cache_SH2TE = cache_SH2CE.narrow(3, 0, length)
        self._slots_N = slots_N

    def __call__(self, query_R1E: Tensor, mask_R1T: Tensor | None) -> Tensor:
        keys_NHTE, values_NHTE = self._cache_SH2TE.index_select(0, self._slots_N).unbind(2)
        return attention_over(keys_NHTE, values_NHTE)(query_R1E, mask_R1T)


def attention_over(keys_NHTE: Tensor, values_NHTE: Tensor) -> Attention:
    """The form for this device, dtype and amount of keys and values."""
    if keys_NHTE.device.type == "cpu":
        if keys_NHTE.dtype.itemsize < 4:
            return SumAttention(keys_NHTE, values_NHTE)
        if 2 * keys_NHTE.nbytes >= _FUSED_FROM_BYTES:
            return FusedAttention(keys_NHTE, values_NHTE)
    return ProductAttention(keys_NHTE, values_NHTE)
