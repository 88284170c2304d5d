"""What is added to self-attention scores: masks, and T5's one number per head and bucket of distance.

Axes: K buckets of distance, H heads of one layer, R distances, S source positions, N sequences, T key positions,
P query positions.

A bias depends only on the distance, so it is one row per head, ordered by distance, and every matrix of biases is a
view of sliding windows over that row. Layers that keep the same heads of the same table share a bias; without a table,
layers that keep the same number of heads do.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from server.engine.weights.relative_positions import Heads, bias_rows


def _numbered(
    tables: Sequence[Tensor | None], layers: Sequence[Heads]
) -> tuple[list[tuple[Tensor | None, Heads]], list[int | None]]:
    """A stack's distinct biases, and the number of each layer's bias; None: the layer has no heads."""
    numbers: dict[tuple[int, Heads], int] = {}
    biases: list[tuple[Tensor | None, Heads]] = []
    by_layer: list[int | None] = []
    for table_KH, kept in zip(tables, layers, strict=True):
        heads = tuple(range(len(kept))) if table_KH is None else kept
        key = id(table_KH), heads
        if heads and key not in numbers:
            numbers[key] = len(biases)
            biases.append((table_KH, heads))
        by_layer.append(numbers.get(key))
    return biases, by_layer


class EncoderBias:
    """The encoder's biases: every key is visible to every query."""

    def __init__(
        self, tables: Sequence[Tensor | None], layers: Sequence[Heads], *, max_distance: int, longest: int
    ) -> None:
        """`tables`: each layer's [K, dense heads], one object if layers share it, None if there is no bias;
        `layers`: each layer's kept heads; `longest`: the most positions.
        """
        self._longest = longest
        biases, self._by_layer = _numbered(tables, layers)
        relative_R = torch.arange(1 - longest, longest)
        self._rows_HR = [
            None
            if table_KH is None
            else bias_rows(table_KH, heads, relative_R, bidirectional=True, max_distance=max_distance).contiguous()
            for table_KH, heads in biases
        ]

    def masks(self, size: int, padding_BS: Tensor | None) -> Iterator[Tensor | None]:
        """Layer by layer, the additive mask of `size` positions, [B or 1, H or 1, S or 1, S]; None: all zeros.

        A mask is made when a layer needs it and kept until a layer needs another: masks are the largest tensors of a
        pass, and there may be one per layer. `padding_BS` holds 0 at a token and -inf at padding; None: there is no
        padding.
        """
        padding_B11S = None if padding_BS is None else padding_BS[:, None, None, :]
        start, stop = self._longest - size, self._longest + size - 1
        made, mask = -1, padding_B11S
        for number in self._by_layer:
            if number is not None and number != made:
                made, rows_HR = number, self._rows_HR[number]
                mask = padding_B11S
                if rows_HR is not None:
                    bias_1HSS = rows_HR[:, start:stop].unfold(1, size, 1).flip(1)[None]
                    mask = bias_1HSS if padding_B11S is None else bias_1HSS + padding_B11S
            yield mask


class DecoderBias:
    """The decoder's biases: a query sees itself and earlier keys; later keys get -inf."""

    def __init__(
        self,
        tables: Sequence[Tensor | None],
        layers: Sequence[Heads],
        *,
        max_distance: int,
        longest: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`tables`, `layers` and `longest` as in `EncoderBias`; without a table, zeros of `dtype` are added."""
        biases, self._by_layer = _numbered(tables, layers)
        relative_T = torch.arange(1 - longest, 1)
        self._last = longest - 1
        self._windows_PHT = []
        for table_KH, heads in biases:
            if table_KH is None:
                past_HT = torch.zeros(len(heads), longest, dtype=dtype, device=device)
            else:
                past_HT = bias_rows(table_KH, heads, relative_T, bidirectional=False, max_distance=max_distance)
            rows_HR = torch.cat((past_HT, torch.full_like(past_HT, -math.inf)), dim=1)
            # Window p begins p keys into the row, so its finite part ends p keys earlier: position last - p.
            self._windows_PHT.append(rows_HR.unfold(1, longest, 1).transpose(0, 1))

    def windows(self, length: int) -> list[Tensor]:
        """Each bias's view [P, H, T] over the first `length` keys, for `select`."""
        return [windows_PHT[:, :, :length] for windows_PHT in self._windows_PHT]

    def select(self, windows: list[Tensor], positions_N: Tensor) -> list[Tensor | None]:
        """Each sequence's bias at its own position: by layer [N*H, 1, T], None if there are no heads."""
        start_N = self._last - positions_N
        selected = [windows_PHT.index_select(0, start_N).view(-1, 1, windows_PHT.shape[2]) for windows_PHT in windows]
        return [None if number is None else selected[number] for number in self._by_layer]
