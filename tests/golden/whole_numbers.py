"""Weights made of whole numbers, so that they are the same on every machine and under every version of the libraries.

PCG64's raw numbers are promised to stay as they are, and dividing whole numbers rounds everywhere alike.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_STEPS = 512  # on each side of zero
_SPREAD = math.sqrt(3.0)  # of a uniform distribution over one side

Weights = NDArray[np.float32]


def drawn(seed: int, name: str, shape: Sequence[int], deviation: float) -> Weights:
    """Numbers about zero with this standard deviation; those of one name do not depend on any other's."""
    raw = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(math.prod(shape))
    whole = (raw % np.uint64(2 * _STEPS + 1)).astype(np.int64) - _STEPS
    return (whole.astype(np.float32) * np.float32(_SPREAD * deviation / _STEPS)).reshape(tuple(shape))


def positive(seed: int, name: str, shape: Sequence[int]) -> Weights:
    """Numbers from a half to one and a half, as norms have them."""
    return np.float32(1.0) + drawn(seed, name, shape, 0.5 / _SPREAD)


def signed(seed: int, name: str, shape: Sequence[int]) -> Weights:
    """The same with signs drawn as well."""
    signs = np.where(drawn(seed, f"{name}, signs", shape, 1.0) < 0, np.float32(-1.0), np.float32(1.0))
    return positive(seed, name, shape) * signs
