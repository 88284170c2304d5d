"""From scores to tokens: the likeliest, the likeliest few, or one drawn at random.

Axes: N or R rows, V vocabulary, K blocks of the vocabulary, C candidates of a row, D draws.

Randomness is counter-based: the number that decides a token is a hash (BLAKE2b) of the request's seed, of which of its
samples it is, and of the token's position. So a text depends on nothing that runs beside it, and no generator's state
is kept, moved or lost. The hash comes with Python, is the same on every machine, and a number takes a microsecond;
seeding a torch generator anew for each takes several.
"""

import math
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from server.engine.sequence import GenerationParameters

# torch's argmax walks a row element by element, its amax is vectorized. From this vocabulary on it is quicker to take
# the maximum of every block first and to search only the best one.
_BLOCKWISE_FROM = 2048
_LARGEST_BLOCK = 320

# Sampling sorts only so many candidates more than top_k keeps; scores equal to the last one kept are kept too.
_TIES = 14
_LARGEST_TOP_K = 512  # from there on the whole vocabulary is no dearer


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


def likeliest(scores_RV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest scores of each row, highest first, and their tokens; both [R, C]."""
    vocabulary = scores_RV.shape[1]
    size = _block_size(vocabulary)
    if scores_RV.device.type != "cpu" or size == 1 or count * size > vocabulary // 2:
        return scores_RV.topk(min(count, vocabulary))
    blocks_RKV = scores_RV.view(len(scores_RV), -1, size)
    block_RC = blocks_RKV.amax(-1).topk(count, sorted=False).indices  # no other block holds one of the highest
    rows_R1 = torch.arange(len(scores_RV))[:, None]
    values_RC, within_RC = blocks_RKV[rows_R1, block_RC].view(len(scores_RV), -1).topk(count)
    return values_RC, block_RC.gather(1, within_RC // size).mul_(size).add_(within_RC % size)


def peak_logprobs(logits_NV: Tensor, peaks_N: Tensor) -> Tensor:
    """Natural log-probability of each row's highest logit, [N], in at least float32."""
    logits_NV = at_least_float32(logits_NV)
    return peaks_N.to(logits_NV.dtype) - logits_NV.logsumexp(-1)


def at_least_float32(logits_NV: Tensor) -> Tensor:
    """Scores are computed in no less."""
    return logits_NV.float() if logits_NV.dtype.itemsize < 4 else logits_NV


def uniform(seed: int, stream: int, position: int, draw: int = 0) -> float:
    """A number in [0, 1) that belongs to this seed, stream, position and draw alone."""
    counter = b"".join(number.to_bytes(8, "little") for number in (stream, position, draw))
    digest = blake2b(counter, key=seed.to_bytes(8, "little"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def sample(scores_RV: Tensor, parameters: Ordered[GenerationParameters], numbers: Ordered[float]) -> list[int]:
    """One token a row, drawn from the row's warped distribution by its number in [0, 1).

    A number picks the token in whose share of the distribution it falls, shares standing in the order of the
    vocabulary, so that what is within rounding changes a choice only where the number is within rounding of a border.
    """
    tokens = [0] * len(numbers)
    narrow = [row for row, each in enumerate(parameters) if 0 < each.top_k <= _LARGEST_TOP_K]
    wide = [row for row, each in enumerate(parameters) if not 0 < each.top_k <= _LARGEST_TOP_K]
    for rows, take in ((narrow, _candidates), (wide, _everything)):
        if rows:
            chosen = [parameters[row] for row in rows]
            scores_RC, ids_RC = take(scores_RV[rows] if len(rows) < len(tokens) else scores_RV, chosen)
            drawn = _draw(scores_RC, ids_RC, [numbers[row] for row in rows])
            for row, token in zip(rows, drawn, strict=True):
                tokens[row] = token
    return tokens


def warp(scores_RV: Tensor, parameters: Ordered[GenerationParameters], keep: int = 1) -> Tensor:
    """transformers' warpers in its order: temperature, top-k, top-p, typical. What they remove becomes -inf.

    `keep`: how many tokens every warper leaves at the least.
    """
    scores_RV = _heat(scores_RV, parameters)
    limited = [row for row, each in enumerate(parameters) if each.top_k > 0]
    if limited:
        counts = [min(max(parameters[row].top_k, keep), scores_RV.shape[1]) for row in limited]
        scores_LV = scores_RV[limited]
        least_L1 = scores_LV.topk(max(counts)).values.gather(1, _column(counts, scores_RV, torch.long) - 1)
        scores_RV[limited] = scores_LV.masked_fill_(scores_LV < least_L1, -math.inf)
    return _narrow(scores_RV, parameters, keep)


def draw_without_replacement(scores_V: Tensor, numbers: Ordered[float]) -> list[int]:
    """As many different indices as there are numbers, each with the probability that the softmax of the scores gives
    it among those that are left. Where no probability is left, the highest scores."""
    shares_V = scores_V.double().softmax(0)
    ends_V = shares_V.cumsum(0)
    left = float(ends_V[-1])
    drawn: list[int] = []
    taken: list[tuple[float, float]] = []  # where the share of each begins, and its width; ascending
    for number in numbers:
        at = number * left
        for begin, width in taken:
            at += width if begin <= at else 0.0
        index = int(torch.searchsorted(ends_V, at, right=True))
        if left <= 0 or index == len(ends_V) or index in drawn:  # but for rounding, nothing is left
            break
        width = float(shares_V[index])
        drawn.append(index)
        taken = sorted([*taken, (float(ends_V[index]) - width, width)])
        left -= width
    if len(drawn) < len(numbers):
        best = scores_V.sort(descending=True, stable=True).indices.tolist()
        drawn += [index for index in best if index not in drawn][: len(numbers) - len(drawn)]
    return drawn


def _heat(scores_RV: Tensor, parameters: Ordered[GenerationParameters]) -> Tensor:
    """Scores by their temperatures; always a copy."""
    return scores_RV / _column([each.temperature for each in parameters], scores_RV, scores_RV.dtype)


def _candidates(scores_RV: Tensor, parameters: Ordered[GenerationParameters]) -> tuple[Tensor, Tensor]:
    """Warped scores of the best tokens, and those tokens: [R, C]. All have a top_k."""
    vocabulary = scores_RV.shape[1]
    counts = [min(each.top_k, vocabulary) for each in parameters]
    scores_RC, ids_RC = likeliest(scores_RV, min(max(counts) + _TIES, vocabulary))
    # The same division in the same order as the whole row would have, of fewer scores.
    scores_RC = _heat(scores_RC, parameters)
    least_R1 = scores_RC.gather(1, _column(counts, scores_RC, torch.long) - 1)
    if scores_RC.shape[1] < vocabulary and bool((scores_RC[:, -1:] >= least_R1).any()):  # more ties than were taken
        return _everything(scores_RV, parameters)
    scores_RC = _narrow(scores_RC.masked_fill_(scores_RC < least_R1, -math.inf), parameters, 1)
    ids_RC, order_RC = ids_RC.sort()
    return scores_RC.gather(1, order_RC), ids_RC


def _everything(scores_RV: Tensor, parameters: Ordered[GenerationParameters]) -> tuple[Tensor, Tensor]:
    """The same of all tokens."""
    vocabulary = torch.arange(scores_RV.shape[1], device=scores_RV.device)
    return warp(scores_RV, parameters), vocabulary.expand_as(scores_RV)


def _narrow(scores_RC: Tensor, parameters: Ordered[GenerationParameters], keep: int) -> Tensor:
    """Top-p and typical, in place."""
    nucleus = [row for row, each in enumerate(parameters) if each.top_p < 1]
    if nucleus:
        mass = _column([parameters[row].top_p for row in nucleus], scores_RC, scores_RC.dtype)
        scores_RC[nucleus] = _top_p(scores_RC[nucleus], mass, keep)
    typical = [row for row, each in enumerate(parameters) if each.typical_p < 1]
    if typical:
        mass = _column([parameters[row].typical_p for row in typical], scores_RC, scores_RC.dtype)
        scores_RC[typical] = _typical(scores_RC[typical], mass, keep)
    return scores_RC


def _top_p(scores_RC: Tensor, mass_R1: Tensor, keep: int) -> Tensor:
    """Keep the likeliest tokens that together have the mass."""
    ascending_RC, order_RC = scores_RC.sort()
    remove_RC = ascending_RC.softmax(-1).cumsum(-1) <= 1 - mass_R1
    remove_RC[:, -keep:] = False
    return scores_RC.masked_fill(remove_RC.scatter(1, order_RC, remove_RC), -math.inf)


def _typical(scores_RC: Tensor, mass_R1: Tensor, keep: int) -> Tensor:
    """Keep the tokens whose surprise is nearest the expected one, and which together have the mass."""
    logprobs_RC = scores_RC.log_softmax(-1)
    entropy_R1 = -(logprobs_RC * logprobs_RC.exp()).nansum(-1, keepdim=True)
    distance_RC, order_RC = (-logprobs_RC - entropy_R1).abs().sort()
    sums_RC = scores_RC.gather(1, order_RC).softmax(-1).cumsum(-1)
    last_R1 = (sums_RC < mass_R1).sum(1, keepdim=True).clamp_(max=scores_RC.shape[1] - 1)
    remove_RC = distance_RC > distance_RC.gather(1, last_R1)
    remove_RC[:, :keep] = False
    return scores_RC.masked_fill(remove_RC.scatter(1, order_RC, remove_RC), -math.inf)


def _draw(scores_RC: Tensor, ids_RC: Tensor, numbers: Ordered[float]) -> list[int]:
    ends_RC = scores_RC.double().softmax(-1).cumsum(-1)
    at_R1 = _column(numbers, ends_RC, torch.double) * ends_RC[:, -1:]
    index_R1 = torch.searchsorted(ends_RC, at_R1, right=True).clamp_(max=scores_RC.shape[1] - 1)
    tokens: list[int] = ids_RC.gather(1, index_R1)[:, 0].tolist()
    return tokens


def _column(values: Ordered[float], like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]


def _block_size(vocabulary: int) -> int:
    """The largest divisor that makes a good block; 1 where whole rows are as quick."""
    if vocabulary < _BLOCKWISE_FROM:
        return 1
    divisors = [size for size in range(64, _LARGEST_BLOCK + 1) if vocabulary % size == 0]
    return max(divisors, default=1)
