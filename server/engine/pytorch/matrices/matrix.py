"""Linear maps. Axes: N rows, I inputs, O outputs."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Matrix(Protocol):
    """A linear map with or without bias. Inputs are contiguous [N, I]."""

    @property
    def nbytes(self) -> int:
        """The memory it holds."""

    def apply(self, x_NI: Tensor) -> Tensor:
        """The map applied to each row [N, O]."""

    def activate(self, x_NI: Tensor, activation: str) -> Tensor:
        """`activation` of the map [N, O]; the names are those of `Network.activation`."""

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        """The residual plus the map [N, O]; may reuse the residual's memory."""


class DenseMatrix:
    """Weights as given, [O, I]."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._weight_IO = weight_OI.contiguous().t()
        self._bias_O = bias_O
        self.nbytes = weight_OI.nbytes + (0 if bias_O is None else bias_O.nbytes)

    def apply(self, x_NI: Tensor) -> Tensor:
        return _apply(x_NI, self._weight_IO, self._bias_O)

    def activate(self, x_NI: Tensor, activation: str) -> Tensor:
        return activate_in_place(_apply(x_NI, self._weight_IO, self._bias_O), activation)

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        return _add(x_NI, self._weight_IO, self._bias_O, residual_NO)


class WideMatrix:
    """Float32 weights between half-precision inputs and a float32 residual."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        """Both in float32."""
        self._plain = DenseMatrix(weight_OI, bias_O)
        self.nbytes = self._plain.nbytes

    def apply(self, x_NI: Tensor) -> Tensor:
        return self._plain.apply(x_NI.float())

    def activate(self, x_NI: Tensor, activation: str) -> Tensor:
        return self._plain.activate(x_NI.float(), activation)

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        return self._plain.add(x_NI.float(), residual_NO.float())


def _apply(x_NI: Tensor, weight_IO: Tensor, bias_O: Tensor | None) -> Tensor:
    return torch.mm(x_NI, weight_IO) if bias_O is None else torch.addmm(bias_O, x_NI, weight_IO)


def _add(x_NI: Tensor, weight_IO: Tensor, bias_O: Tensor | None, residual_NO: Tensor) -> Tensor:
    if residual_NO.dtype == x_NI.dtype:
        residual_NO.addmm_(x_NI, weight_IO)
    else:
        residual_NO.add_(torch.mm(x_NI, weight_IO))
    return residual_NO if bias_O is None else residual_NO.add_(bias_O)


def activate_in_place(x: Tensor, activation: str) -> Tensor:
    """`activation` of x; may reuse its memory."""
    if activation == "relu":
        return x.relu_()
    if activation == "silu":
        return F.silu(x, inplace=True)
    return F.gelu(x, approximate="tanh" if activation == "gelu_new" else "none")
