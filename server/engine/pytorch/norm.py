"""Norms with and without weights. Axes: N rows, D model width."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class RowNorm(Protocol):
    """Norms each row [N, D]. `factor`: multiply the result by it to get the norm."""

    factor: float

    def __call__(self, x_ND: Tensor) -> Tensor: ...


class NoNorm:
    """No norm: the rows themselves."""

    factor = 1.0

    def __call__(self, x_ND: Tensor) -> Tensor:
        return x_ND


class PlainRMSNorm:
    """RMSNorm without weights and without its factor sqrt(D): both belong in the matrix that follows.

    x / sqrt(mean(x^2) + eps) = sqrt(D) * x / sqrt(|x|^2 + D*eps), and the last root is the hypotenuse of |x| and
    sqrt(D*eps): three small operations, where the definition takes five.
    """

    def __init__(self, *, width: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        self.factor = math.sqrt(width)
        self._dtype = dtype
        self._half = dtype.itemsize < 4
        self._leg = torch.tensor(math.sqrt(width * eps), dtype=torch.float32 if self._half else dtype, device=device)

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Each row divided by the hypotenuse; half precision is normed in float32, as the residual may be float32."""
        if self._half:
            x_ND_float = x_ND.float()
            length_N1 = torch.linalg.vector_norm(x_ND_float, 2, -1, True)
            return torch.div(x_ND_float, length_N1.hypot_(self._leg)).to(self._dtype)
        return torch.div(x_ND, torch.linalg.vector_norm(x_ND, 2, -1, True).hypot_(self._leg))


class FusedRMSNorm:
    """RMSNorm without weights in one operation: on CUDA the number of operations matters most."""

    factor = 1.0

    def __init__(self, *, width: int, eps: float, dtype: torch.dtype) -> None:
        self._shape = (width,)
        self._eps = eps
        self._dtype = dtype

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Computed in at least float32, returned in the model's dtype."""
        return F.rms_norm(x_ND, self._shape, None, self._eps).to(self._dtype)


class LayerNorm:
    """(x - mean) / sqrt(variance + eps), times the gain plus the shift if there are weights."""

    factor = 1.0

    def __init__(self, *, width: int, eps: float, gain_D: Tensor | None = None, shift_D: Tensor | None = None) -> None:
        self._shape = (width,)
        self._eps = eps
        self._gain_D = gain_D
        self._shift_D = shift_D

    def __call__(self, x_ND: Tensor) -> Tensor:
        return F.layer_norm(x_ND, self._shape, self._gain_D, self._shift_D, self._eps)
