"""Keys and values of all running sequences, allocated once.

Axes: N running sequences, H heads of one layer, C the cache's capacity in positions, T positions in use, D head width,
R = N*H rows of attention.

A running sequence owns one slot in every layer. Running sequences fill slots 0 to N-1, so a step works on views and
copies nothing.
"""

import torch
from torch import Tensor

from server.engine.pytorch.attention import Attention, CachedAttention, GatheredAttention


class KeyValueCache:
    """The keys and values of a stack's layers; one instance for self-attention, one for cross-attention."""

    def __init__(
        self,
        heads: list[int],
        *,
        slots: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`heads`: each layer's number, 0 if the sublayer is absent; `capacity`: positions per slot."""
        self.dtype = dtype
        # Zeros, not uninitialized memory: a masked key still gets a weight of 0, and 0 * NaN is NaN.
        self.layers = [
            torch.zeros(slots, h, 2, capacity, head_dim, dtype=dtype, device=device) for h in heads
        ]  # [slots, H, key or value, C, D]
        self._flat = [layer.view(-1, head_dim) for layer in self.layers]
        self._first_rows = {
            h: torch.arange(slots * h * 2, device=device).view(slots, h, 2) * capacity for h in set(heads)
        }  # [slots, H, key or value]: the row of position 0 in the flat layer

    @property
    def nbytes(self) -> int:
        """The memory it holds."""
        return sum(layer.nbytes for layer in self.layers)

    def view(self, sequences: int, length: int) -> list[Attention]:
        """Each layer's attention over the first `length` positions of the first `sequences` slots."""
        return [CachedAttention(*layer.narrow(0, 0, sequences).narrow(3, 0, length).unbind(2)) for layer in self.layers]

    def gather(self, slots_N: Tensor, length: int) -> list[Attention]:
        """Each layer's attention over the first `length` positions of any slots, with their contents at call time."""
        return [GatheredAttention(layer, slots_N, length) for layer in self.layers]

    def rows_at(self, positions_N: Tensor, slots_N: Tensor | None = None) -> dict[int, Tensor]:
        """The flat rows [R, key or value] of the positions, by head count, for `write`.

        They belong to `slots_N`, or to the first N slots.
        """
        offset_N11 = positions_N.view(-1, 1, 1)
        return {
            h: ((first[: len(positions_N)] if slots_N is None else first[slots_N]) + offset_N11).view(-1, 2)
            for h, first in self._first_rows.items()
        }

    def write(self, layer: int, rows_R2: Tensor, keys_values_R2D: Tensor) -> None:
        """Write one position of each sequence."""
        self._flat[layer].index_put_((rows_R2,), keys_values_R2D)

    def fill(self, layer: int, slots_B: Tensor, keys_values_BH2TD: Tensor) -> None:
        """Write the first positions of the named slots: [B, H, 2, T, D]."""
        self.layers[layer][:, :, :, : keys_values_BH2TD.shape[3]].index_copy_(0, slots_B, keys_values_BH2TD)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot over another's."""
        for layer in self.layers:
            layer[target, :, :, :length].copy_(layer[source, :, :, :length])

    def copy_of(self, slot: int, length: int) -> list[Tensor]:
        """A slot's first `length` positions in every layer: [H, key or value, length, D]."""
        return [layer[slot, :, :, :length].clone() for layer in self.layers]

    def put(self, slot: int, positions: list[Tensor]) -> None:
        """Write what `copy_of` returned into a slot."""
        for layer, kept in zip(self.layers, positions, strict=True):
            layer[slot, :, :, : kept.shape[2]].copy_(kept)

    def reorder(self, targets_N: Tensor, origins_N: Tensor, length: int) -> None:
        """Give each target the current first `length` positions of its origin; a slot may be both."""
        for layer in self.layers:
            positions = layer[:, :, :, :length]
            positions.index_copy_(0, targets_N, positions.index_select(0, origins_N))

    def clear(self, slot: int) -> None:
        """Zero a slot, so that no non-finite value stays in it."""
        for layer in self.layers:
            layer[slot].zero_()


def cache_bytes(heads: list[int], *, slots: int, capacity: int, head_dim: int, dtype: torch.dtype) -> int:
    """The memory that a `KeyValueCache` of this shape will hold."""
    return sum(heads) * slots * 2 * capacity * head_dim * dtype.itemsize
