"""From scores to tokens: the likeliest, the likeliest few, or one drawn at random.

Axes: N or R rows, V vocabulary, K blocks of B tokens each, T tokens after the last whole block, C candidates.

Randomness is counter-based: the number that decides a token is a hash (BLAKE2b) of the request's seed, the index of the
sample, and the token's position. So a text does not depend on what runs beside it, and no generator state is kept,
moved or lost. The hash comes with Python and is the same on every machine. A number takes a microsecond; reseeding a
torch generator for each takes several.
"""

import math
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.interface.parameters import GenerationParameters

# torch's argmax, topk and cumsum walk a row element by element; its amax and sum are vectorized. From this vocabulary
# size on it is faster to reduce every block first, and then search only the best (or the right) blocks.
_BLOCKWISE_FROM = 2048
_BLOCK = 128

# Sampling sorts only this many candidates beyond top_k; scores tied with the last one kept are kept too.
_TIES = 14
_LARGEST_TOP_K = 512  # beyond it the whole vocabulary costs no more

# Top-p and typical look at this many tokens before they sort the whole vocabulary, which takes milliseconds per row.
_FIRST_LOOK = 256
_MASS_ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The best token of each sequence and its logit, both [N]."""

    tokens_N: Tensor
    max_logits_N: Tensor  # not finite if the row contains a NaN or +inf anywhere


def greedy(logits_NV: Tensor) -> Choice:
    """The first of each row's highest logits, as `argmax` would choose it."""
    if not _blockwise(logits_NV):
        max_logits_N, tokens_N = logits_NV.max(-1)
        return Choice(tokens_N=tokens_N, max_logits_N=max_logits_N)
    blocks_NKB, rest_NT = _blocks(logits_NV)
    max_logits_N, block_N = blocks_NKB.amax(-1).max(-1)
    within_N = blocks_NKB[torch.arange(len(block_N)), block_N].argmax(-1)
    tokens_N = block_N.mul_(_BLOCK).add_(within_N)
    if rest_NT.shape[1]:
        last_N, at_N = rest_NT.max(-1)
        tokens_N = torch.where(last_N > max_logits_N, at_N + (logits_NV.shape[1] - rest_NT.shape[1]), tokens_N)
        max_logits_N = torch.maximum(max_logits_N, last_N)
    return Choice(tokens_N=tokens_N, max_logits_N=max_logits_N)


def likeliest(scores_RV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest scores of each row, highest first, and their tokens; both [R, C]."""
    rows, vocabulary = scores_RV.shape
    if not _blockwise(scores_RV) or count * _BLOCK > vocabulary:
        return scores_RV.topk(min(count, vocabulary))
    blocks_RKB, rest_RT = _blocks(scores_RV)
    block_RC = blocks_RKB.amax(-1).topk(count, sorted=False).indices  # no other block holds a top score
    best_RD = blocks_RKB[torch.arange(rows)[:, None], block_RC].view(rows, -1)
    ids_RD = (block_RC[:, :, None] * _BLOCK + torch.arange(_BLOCK)).view(rows, -1)
    if rest_RT.shape[1]:
        best_RD = torch.cat((best_RD, rest_RT), dim=1)
        last_T = torch.arange(vocabulary - rest_RT.shape[1], vocabulary)
        ids_RD = torch.cat((ids_RD, last_T.expand(rows, -1)), dim=1)
    values_RC, at_RC = best_RD.topk(count)
    return values_RC, ids_RD.gather(1, at_RC)


def at_least_float32(logits_NV: Tensor) -> Tensor:
    """Scores are computed in at least float32."""
    return logits_NV.float() if logits_NV.dtype.itemsize < 4 else logits_NV


def uniform(seed: int, stream: int, position: int, draw: int = 0) -> float:
    """A number in [0, 1) that belongs to this seed, stream, position and draw alone."""
    counter = b"".join(number.to_bytes(8, "little") for number in (stream, position, draw))
    digest = blake2b(counter, key=seed.to_bytes(8, "little"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def sample(scores_RV: Tensor, parameters: Ordered[GenerationParameters], numbers: Ordered[float]) -> list[int]:
    """One token per row, drawn from the row's warped distribution by its number in [0, 1).

    A number picks the token whose share of the distribution it falls into. Shares are in vocabulary order, so a
    rounding difference changes a choice only if the number is within rounding of a border.
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
    """transformers' warpers in its order: temperature, top-k, top-p, typical. Removed tokens become -inf.

    `keep`: how many tokens every warper leaves at least.
    """
    scores_RV = _by_temperature(scores_RV, parameters)
    limited = [row for row, each in enumerate(parameters) if each.top_k > 0]
    if limited:
        counts = [min(max(parameters[row].top_k, keep), scores_RV.shape[1]) for row in limited]
        scores_LV = scores_RV[limited]
        least_L1 = scores_LV.topk(max(counts)).values.gather(1, _column(counts, scores_RV, torch.long) - 1)
        scores_RV[limited] = scores_LV.masked_fill_(scores_LV < least_L1, -math.inf)
    return _narrow(scores_RV, parameters, keep)


def draw_without_replacement(scores_V: Tensor, numbers: Ordered[float]) -> list[int]:
    """Draw one index per number, all different, each with its softmax probability among those left. When no
    probability is left, take the highest scores."""
    shares_V = scores_V.double().softmax(0)
    ends_V = shares_V.cumsum(0)
    left = float(ends_V[-1])
    drawn: list[int] = []
    taken: list[tuple[float, float]] = []  # start and width of each one's share, ascending
    for number in numbers:
        at = number * left
        for begin, width in taken:
            at += width if begin <= at else 0.0
        index = int(torch.searchsorted(ends_V, at, right=True))
        if left <= 0 or index == len(ends_V) or index in drawn:  # nothing is left, up to rounding
            break
        width = float(shares_V[index])
        drawn.append(index)
        taken = sorted([*taken, (float(ends_V[index]) - width, width)])
        left -= width
    if len(drawn) < len(numbers):
        best = scores_V.sort(descending=True, stable=True).indices.tolist()
        drawn += [index for index in best if index not in drawn][: len(numbers) - len(drawn)]
    return drawn


def _by_temperature(scores_RV: Tensor, parameters: Ordered[GenerationParameters]) -> Tensor:
    """Scores divided by their temperatures; always a copy."""
    return scores_RV / _column([each.temperature for each in parameters], scores_RV, scores_RV.dtype)


def _candidates(scores_RV: Tensor, parameters: Ordered[GenerationParameters]) -> tuple[Tensor, Tensor]:
    """Warped scores of the best tokens, and those tokens: [R, C]. Every row has a top_k."""
    vocabulary = scores_RV.shape[1]
    counts = [min(each.top_k, vocabulary) for each in parameters]
    scores_RC, ids_RC = likeliest(scores_RV, min(max(counts) + _TIES, vocabulary))
    # The same division in the same order as for the whole row, on fewer scores.
    scores_RC = _by_temperature(scores_RC, parameters)
    least_R1 = scores_RC.gather(1, _column(counts, scores_RC, torch.long) - 1)
    if scores_RC.shape[1] < vocabulary and bool((scores_RC[:, -1:] >= least_R1).any()):  # more ties than expected
        return _everything(scores_RV, parameters)
    scores_RC = _narrow(scores_RC.masked_fill_(scores_RC < least_R1, -math.inf), parameters, 1)
    ids_RC, order_RC = ids_RC.sort()
    return scores_RC.gather(1, order_RC), ids_RC


def _everything(scores_RV: Tensor, parameters: Ordered[GenerationParameters]) -> tuple[Tensor, Tensor]:
    """Warped scores of all tokens, and those tokens: [R, V]."""
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
    """Keep the likeliest tokens that together reach the mass."""
    if scores_RC.shape[1] <= 4 * _FIRST_LOOK:
        return _top_p_of_all(scores_RC, mass_R1, keep)
    best_RL, ids_RL = likeliest(scores_RC, _FIRST_LOOK)
    shares_RL = (best_RL - scores_RC.logsumexp(-1, keepdim=True)).exp_()
    ends_RL = shares_RL.cumsum(-1)
    removed_RL = ends_RL - shares_RL >= mass_R1
    removed_RL[:, :keep] = False
    kept_RC = torch.full_like(scores_RC, -math.inf)
    kept_RC.scatter_(1, ids_RL, best_RL.masked_fill_(removed_RL, -math.inf))
    beyond = (ends_RL[:, -1:] < mass_R1 + _MASS_ROUNDING)[:, 0].nonzero()[:, 0]
    if len(beyond):
        kept_RC[beyond] = _top_p_of_all(scores_RC[beyond], mass_R1[beyond], keep)
    return kept_RC


def _top_p_of_all(scores_RC: Tensor, mass_R1: Tensor, keep: int) -> Tensor:
    ascending_RC, order_RC = scores_RC.sort()
    remove_RC = ascending_RC.softmax(-1).cumsum(-1) <= 1 - mass_R1
    remove_RC[:, -keep:] = False
    return scores_RC.masked_fill(remove_RC.scatter(1, order_RC, remove_RC), -math.inf)


def _typical(scores_RC: Tensor, mass_R1: Tensor, keep: int) -> Tensor:
    """Keep the tokens whose surprise is nearest the expected one and that together reach the mass."""
    logprobs_RC = scores_RC.log_softmax(-1)
    entropy_R1 = -(logprobs_RC * logprobs_RC.exp()).nansum(-1, keepdim=True)
    closeness_RC = logprobs_RC.add_(entropy_R1).abs_().neg_()
    look = _FIRST_LOOK if scores_RC.shape[1] > 4 * _FIRST_LOOK else scores_RC.shape[1]
    nearest_RL, ids_RL = likeliest(closeness_RC, look)
    before_RL = _mass_up_to(scores_RC, ids_RL) < mass_R1
    if look < scores_RC.shape[1] and bool(before_RL[:, -1].any()):
        nearest_RL, ids_RL = closeness_RC.sort(descending=True)
        before_RL = _mass_up_to(scores_RC, ids_RL) < mass_R1
    last_R1 = before_RL.sum(1, keepdim=True).clamp_(max=nearest_RL.shape[1] - 1)
    remove_RC = closeness_RC < nearest_RL.gather(1, last_R1)
    remove_RC.scatter_(1, ids_RL[:, :keep], False)
    return scores_RC.masked_fill(remove_RC, -math.inf)


def _mass_up_to(scores_RC: Tensor, ids_RL: Tensor) -> Tensor:
    """The cumulative probability of these tokens."""
    return (scores_RC.gather(1, ids_RL) - scores_RC.logsumexp(-1, keepdim=True)).exp_().cumsum(-1)


def _draw(scores_RC: Tensor, ids_RC: Tensor, numbers: Ordered[float]) -> list[int]:
    """Overwrites the scores."""
    shares_RC = scores_RC.sub_(scores_RC.amax(-1, keepdim=True)).exp_()  # not normalized yet
    number_R1 = _column(numbers, shares_RC, torch.double)
    if _blockwise(shares_RC):
        rest = shares_RC.shape[1] % _BLOCK
        shares_RKB = (F.pad(shares_RC, (0, _BLOCK - rest)) if rest else shares_RC).view(len(numbers), -1, _BLOCK)
        block_R1, number_R1 = _find(shares_RKB.sum(-1), number_R1)
        shares_RB = shares_RKB[torch.arange(len(numbers)), block_R1[:, 0]]
        index_R1 = block_R1 * _BLOCK + _find(shares_RB, number_R1)[0]
    else:
        index_R1, _ = _find(shares_RC, number_R1)
    tokens: list[int] = ids_RC.gather(1, index_R1)[:, 0].tolist()
    return tokens


def _find(shares_RC: Tensor, number_R1: Tensor) -> tuple[Tensor, Tensor]:
    """The share that each number in [0, 1) falls into, and its place there, from 0 to 1; both [R, 1]."""
    ends_RC = shares_RC.cumsum(-1, dtype=torch.double)
    at_R1 = number_R1 * ends_RC[:, -1:]
    # The last nonempty share takes what rounding puts past the end.
    last_R1 = (ends_RC < ends_RC[:, -1:]).sum(1, keepdim=True)
    index_R1 = torch.searchsorted(ends_RC, at_R1, right=True).minimum(last_R1)
    share_R1 = shares_RC.gather(1, index_R1).double()
    return index_R1, (1 - (ends_RC.gather(1, index_R1) - at_R1) / share_R1).clamp_(0, 1)


def _column(values: Ordered[float], like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]


def _blockwise(scores_RV: Tensor) -> bool:
    """Whether blocks pay off."""
    return scores_RV.device.type == "cpu" and scores_RV.shape[1] >= _BLOCKWISE_FROM


def _blocks(scores_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Views of the whole blocks [R, K, B] and of the rest [R, T]."""
    whole = scores_RV.shape[1] // _BLOCK * _BLOCK
    return scores_RV[:, :whole].view(len(scores_RV), -1, _BLOCK), scores_RV[:, whole:]
