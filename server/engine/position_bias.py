"""What is added to the scores of self-attention: masks, and T5's one number for each head and bucket of distance.

Axes: H heads of one layer, S source positions, N sequences, T key positions, P query positions.

A bias depends on the distance alone, so a stack keeps one row per head, ordered by distance, and every matrix of
biases is a view of sliding windows over that row. Layers that keep the same heads share one table; without a bias,
layers that keep as many.
"""

import math

import torch
from torch import Tensor

Heads = tuple[int, ...]


def relative_bucket(relative: Tensor, *, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """Bucket numbers of `relative` = key position - query position; the shape stays.

    Half of the buckets are exact, the rest grow with the logarithm of the distance (Raffel et al. 2020, sec. 2.1).
    The order of operations is that of transformers' T5, so the roundings agree bit for bit.
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


class EncoderBias:
    """The encoder's tables: every key is visible to every query."""

    def __init__(self, weight: Tensor | None, layers: list[Heads], *, max_distance: int, longest: int) -> None:
        """`weight` [buckets, dense heads], None: there is no bias; `layers`: each layer's kept heads; `longest`: the
        most positions.
        """
        self._longest = longest
        self._rows_HR: dict[Heads, Tensor | None] = dict.fromkeys(layers)
        if weight is None:
            return
        relative = torch.arange(1 - longest, longest)
        bucket = relative_bucket(relative, bidirectional=True, buckets=weight.shape[0], max_distance=max_distance).to(
            weight.device
        )
        for heads in self._rows_HR:
            self._rows_HR[heads] = weight[bucket][:, list(heads)].t().contiguous()

    def masks(self, size: int, padding_BS: Tensor | None) -> dict[Heads, Tensor | None]:
        """For each set of heads the additive mask of `size` positions, [B or 1, H or 1, S or 1, S]; None: all zeros.

        `padding_BS` holds 0 where there is a token and -inf where there is none; None: there is no padding.
        """
        padding_B11S = None if padding_BS is None else padding_BS[:, None, None, :]
        start, stop = self._longest - size, self._longest + size - 1
        masks: dict[Heads, Tensor | None] = {}
        for heads, rows_HR in self._rows_HR.items():
            if rows_HR is None:
                masks[heads] = padding_B11S
                continue
            bias_1HSS = rows_HR[:, start:stop].unfold(1, size, 1).flip(1)[None]
            masks[heads] = bias_1HSS if padding_B11S is None else bias_1HSS + padding_B11S
        return masks


class DecoderBias:
    """The decoder's tables: a query sees itself and what came before; later keys get -inf."""

    def __init__(self, weight: Tensor, layers: list[Heads], *, max_distance: int, longest: int) -> None:
        """`weight` [buckets, dense heads], zeros where there is no bias; `layers`: each layer's kept heads; `longest`:
        the most positions.
        """
        bucket = relative_bucket(
            torch.arange(1 - longest, 1), bidirectional=False, buckets=weight.shape[0], max_distance=max_distance
        ).to(weight.device)
        self._last = longest - 1
        self._windows_PHT = {}
        for heads in set(layers):
            past_HT = weight[bucket][:, list(heads)].t()
            future_HT = torch.full_like(past_HT, -math.inf)
            rows_HR = torch.cat((past_HT, future_HT), dim=1)
            # Window p begins p keys into the row, so it ends its finite part p keys earlier: position last - p.
            self._windows_PHT[heads] = rows_HR.unfold(1, longest, 1).transpose(0, 1)

    def windows(self, length: int) -> dict[Heads, Tensor]:
        """For each set of heads the view [P, H, T] over the first `length` keys, for `select`."""
        return {heads: windows[:, :, :length] for heads, windows in self._windows_PHT.items()}

    def select(self, windows: dict[Heads, Tensor], positions_N: Tensor) -> dict[Heads, Tensor]:
        """Each sequence's bias by its own position: for each set of heads [N*H, 1, T]."""
        start_N = self._last - positions_N
        return {
            heads: windows_PHT.index_select(0, start_N).view(-1, 1, windows_PHT.shape[2])
            for heads, windows_PHT in windows.items()
        }
