"""Linear maps in the fastest layout for their use. Axes: N rows, I inputs, O outputs."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.capabilities import torch_bfloat16

# Up to this size a second copy of a matrix is worth its memory: a single row then goes through MKL, whose fixed cost is
# lower than oneDNN's. Larger products are bound by memory bandwidth, where the two are close.
SINGLE_ROW_COPY_BYTES = 4 * 2**20

# Packing for any row count above one gives the same blocked layout, which also serves a single row.
_PACK_ROWS = 8

_ONEDNN_ACTIVATIONS = {
    "relu": ("relu", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "silu": ("swish", ""),
}


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


class PlainMatrix:
    """Weights as given, [O, I]: for CUDA and for float64."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._weight_IO = weight_OI.t()
        self._bias_O = bias_O
        self.nbytes = weight_OI.nbytes + (0 if bias_O is None else bias_O.nbytes)

    def apply(self, x_NI: Tensor) -> Tensor:
        return _apply(x_NI, self._weight_IO, self._bias_O)

    def activate(self, x_NI: Tensor, activation: str) -> Tensor:
        return activate_in_place(_apply(x_NI, self._weight_IO, self._bias_O), activation)

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        return _add(x_NI, self._weight_IO, self._bias_O, residual_NO)


class PackedMatrix:
    """Weights in oneDNN's blocked layout: for float32 and bfloat16 on a CPU."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, single_rows: bool) -> None:
        """`single_rows`: the matrix will often get a single row."""
        outputs, inputs = weight_OI.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), _PACK_ROWS)
        self._bias_O = bias_O
        self._weight_IO: Tensor | None = None
        self.nbytes = weight_OI.nbytes
        if single_rows and weight_OI.dtype == torch.float32 and weight_OI.nbytes <= SINGLE_ROW_COPY_BYTES:
            # MKL's product of one row is fastest along the longer side.
            self._weight_IO = weight_OI.t().contiguous() if outputs >= inputs else weight_OI.contiguous().t()
            self.nbytes *= 2
        if bias_O is not None:
            self.nbytes += bias_O.nbytes

    def apply(self, x_NI: Tensor) -> Tensor:
        if self._weight_IO is not None and x_NI.shape[0] == 1:
            return _apply(x_NI, self._weight_IO, self._bias_O)
        return self._product(x_NI, "none", "")

    def activate(self, x_NI: Tensor, activation: str) -> Tensor:
        if self._weight_IO is not None and x_NI.shape[0] == 1:
            return activate_in_place(_apply(x_NI, self._weight_IO, self._bias_O), activation)
        return self._product(x_NI, *_ONEDNN_ACTIVATIONS[activation])

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        if self._weight_IO is not None and x_NI.shape[0] == 1:
            return _add(x_NI, self._weight_IO, self._bias_O, residual_NO)
        product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x_NI, residual_NO, self._packed, self._bias_O, "add"
        )
        return product

    def _product(self, x_NI: Tensor, activation: str, algorithm: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            x_NI, self._packed, self._bias_O, activation, [], algorithm
        )
        return product


class WideMatrix:
    """Float32 weights between half-precision inputs and a float32 residual."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        """Both in float32."""
        self._plain = PlainMatrix(weight_OI, bias_O)
        self.nbytes = self._plain.nbytes

    def apply(self, x_NI: Tensor) -> Tensor:
        return self._plain.apply(x_NI.float())

    def activate(self, x_NI: Tensor, activation: str) -> Tensor:
        return self._plain.activate(x_NI.float(), activation)

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        return self._plain.add(x_NI.float(), residual_NO.float())


def lay_out(weight_OI: Tensor, bias_O: Tensor | None, *, single_rows: bool) -> Matrix:
    """The map in the layout for its device and dtype; `single_rows`: it will often get a single row."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if weight_OI.device.type == "cpu" and has_onednn and _onednn_takes(weight_OI.dtype):
        return PackedMatrix(weight_OI, bias_O, single_rows=single_rows)
    return PlainMatrix(weight_OI.contiguous(), bias_O)


def _onednn_takes(dtype: torch.dtype) -> bool:
    """On this processor; PyTorch's own bfloat16 product is correct on every processor, if slow."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch_bfloat16() is None)


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
