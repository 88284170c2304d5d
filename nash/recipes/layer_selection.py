"""Which decoder layers of the dense model a shortened decoder keeps."""

import math
from collections.abc import Callable
from itertools import combinations

from nash.errors import RequestError
from nash.recipes.recipe import LayerSelection


def select_layers(total: int, keep: int | list[int] | None, how: LayerSelection = "uniform") -> tuple[int, ...]:
    """Indices of the kept layers, ascending; `keep` is their number, an explicit list, or None for all.

    `uniform` spreads them from the first to the last (index_j = floor(j (L-1) / (n-1)), as NASH does), `low` takes
    the first ones, `high` the last ones. `auto` and `trained` are decided on data; here they return the uniform layers.

    Raises:
        RequestError: `keep` is below one or above `total`, or its indices are not ascending layer numbers.
    """
    if keep is None:
        return tuple(range(total))
    if isinstance(keep, list):
        if not keep or sorted(set(keep)) != keep or keep[0] < 0 or keep[-1] >= total:
            raise RequestError(f"decoder_layers {keep} must be ascending layer numbers from 0 to {total - 1}")
        return tuple(keep)
    if not 1 <= keep <= total:
        raise RequestError(f"decoder_layers {keep} is out of range: the decoder has {total}, keep 1 to {total}")
    if how == "low":
        return tuple(range(keep))
    if how == "high":
        return tuple(range(total - keep, total))
    if keep == 1:
        return (0,)
    return tuple(j * (total - 1) // (keep - 1) for j in range(keep))


def block_ends(kept: tuple[int, ...], total: int) -> tuple[int, ...]:
    """For each kept layer, the dense layer at the end of the block that it now represents.

    A block runs from a kept layer to just before the next one; the last block runs to the end of the decoder.
    """
    return tuple(after - 1 for after in (*kept[1:], total))


MOST_TRIALS = 64
_MOST_TRAINED = 12  # each costs a short training


def trained_candidates(total: int, keep: int, closest: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The choices of `keep` layers to decide between by a short training: all if they are few.

    Else the uniform ones, the first, the last, and `closest`, which `search_layers` found.
    """
    if math.comb(total, keep) <= _MOST_TRAINED:
        return list(combinations(range(total), keep))
    hows: tuple[LayerSelection, ...] = ("uniform", "low", "high")
    return sorted({*(select_layers(total, keep, how) for how in hows), closest})


def search_layers(total: int, keep: int, cost: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """The cheapest `keep` of `total` layers: by trying all choices if they are few, else greedily.

    If there are more than `MOST_TRIALS` choices, drop the layer whose absence costs least, and repeat as often as
    needed. Between equal costs, the lower layer numbers win.
    """
    if math.comb(total, keep) <= MOST_TRIALS:
        return min(combinations(range(total), keep), key=cost)
    kept = tuple(range(total))
    while len(kept) > keep:
        kept = min(combinations(kept, len(kept) - 1), key=cost)
    return kept
