"""Other forms of attention over cached keys and values, measured beside the engine's own.

Axes: N running sequences, H heads, R = N*H rows of attention, T positions, E width of a head.
"""

import torch.nn.functional as F
from torch import Tensor


class SumAttention:
    """Products and sums, without matrix products."""

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
