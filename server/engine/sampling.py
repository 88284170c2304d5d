"""From logits to tokens. Axes: N sequences, V vocabulary, K blocks of the vocabulary."""

from dataclasses import dataclass

import torch
from torch import Tensor

# torch's argmax walks a row element by element, its amax is vectorized. From this vocabulary on it is quicker to take
# the maximum of every block first and to search only the best one.
_BLOCKWISE_FROM = 2048
_LARGEST_BLOCK = 320


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The best token of each sequence and its logit, both [N]."""

    tokens_N: Tensor
    peaks_N: Tensor  # not finite where a NaN or +inf stands anywhere in the row


def greedy(logits_NV: Tensor) -> Choice:
    """The first of the highest logits of each row, as `argmax` would choose it."""
    size = _block_size(logits_NV.shape[1])
    if logits_NV.device.type != "cpu" or size == 1:
        peaks_N, tokens_N = logits_NV.max(-1)
        return Choice(tokens_N=tokens_N, peaks_N=peaks_N)
    blocks_NKV = logits_NV.view(len(logits_NV), -1, size)
    peaks_N, block_N = blocks_NKV.amax(-1).max(-1)
    within_N = blocks_NKV[torch.arange(len(block_N)), block_N].argmax(-1)
    return Choice(tokens_N=block_N.mul_(size).add_(within_N), peaks_N=peaks_N)


def peak_logprobs(logits_NV: Tensor, peaks_N: Tensor) -> Tensor:
    """Natural log-probability of each row's highest logit, [N], in at least float32."""
    logits_NV = logits_NV.float() if logits_NV.dtype.itemsize < 4 else logits_NV
    return peaks_N.to(logits_NV.dtype) - logits_NV.logsumexp(-1)


def _block_size(vocabulary: int) -> int:
    """The largest divisor that makes a good block; 1 where whole rows are as quick."""
    if vocabulary < _BLOCKWISE_FROM:
        return 1
    divisors = [size for size in range(64, _LARGEST_BLOCK + 1) if vocabulary % size == 0]
    return max(divisors, default=1)
