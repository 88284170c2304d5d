"""Weight matrices in the layout that is fastest where they are used, and the norm that feeds them.

Axes: N rows, I inputs, O outputs, D model width.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Up to this size a second copy of a matrix is worth its memory: a single row goes through MKL then, whose fixed cost
# is lower than oneDNN's. Larger products are bound by memory bandwidth, where the two are close.
SINGLE_ROW_COPY_BYTES = 4 * 2**20

# Packing for any row count above one gives the same blocked layout; it serves a single row as well.
_PACK_ROWS = 8

_ONEDNN_ACTIVATIONS = {
    "relu": ("relu", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "silu": ("swish", ""),
}


class Matrix(Protocol):
    """A linear map without bias. Inputs are contiguous [N, I]."""

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""

    def apply(self, x_NI: Tensor) -> Tensor:
        """The product [N, O]."""

    def activate(self, x_NI: Tensor, activation: str) -> Tensor:
        """`activation` of the product [N, O]; the names are those of `ModelSpec.activation`."""

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        """The residual plus the product [N, O]."""


class PlainMatrix:
    """Weights as they come, [O, I]: for CUDA and for float64."""

    def __init__(self, weight_OI: Tensor) -> None:
        self._weight_OI = weight_OI
        self._weight_IO = weight_OI.t()

    @property
    def nbytes(self) -> int:
        return self._weight_OI.nbytes

    def apply(self, x_NI: Tensor) -> Tensor:
        return torch.mm(x_NI, self._weight_IO)

    def activate(self, x_NI: Tensor, activation: str) -> Tensor:
        return _activate(torch.mm(x_NI, self._weight_IO), activation)

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        return torch.addmm(residual_NO, x_NI, self._weight_IO)


class PackedMatrix:
    """Weights in oneDNN's blocked layout: for float32 and bfloat16 on a CPU."""

    def __init__(self, weight_OI: Tensor, *, single_rows: bool) -> None:
        """`single_rows`: the matrix will often meet one row alone."""
        outputs, inputs = weight_OI.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), _PACK_ROWS)
        self._weight_IO: Tensor | None = None
        self.nbytes = weight_OI.nbytes
        if single_rows and weight_OI.dtype == torch.float32 and weight_OI.nbytes <= SINGLE_ROW_COPY_BYTES:
            # MKL's product of one row is quickest along the longer side.
            self._weight_IO = weight_OI.t().contiguous() if outputs >= inputs else weight_OI.contiguous().t()
            self.nbytes *= 2

    def apply(self, x_NI: Tensor) -> Tensor:
        if self._weight_IO is not None and x_NI.shape[0] == 1:
            return torch.mm(x_NI, self._weight_IO)
        return self._product(x_NI, "none", "")

    def activate(self, x_NI: Tensor, activation: str) -> Tensor:
        if self._weight_IO is not None and x_NI.shape[0] == 1:
            return _activate(torch.mm(x_NI, self._weight_IO), activation)
        return self._product(x_NI, *_ONEDNN_ACTIVATIONS[activation])

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        if self._weight_IO is not None and x_NI.shape[0] == 1:
            return torch.addmm(residual_NO, x_NI, self._weight_IO)
        product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x_NI, residual_NO, self._packed, None, "add")
        return product

    def _product(self, x_NI: Tensor, activation: str, algorithm: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, self._packed, None, activation, [], algorithm)
        return product


def lay_out(weight_OI: Tensor, *, single_rows: bool) -> Matrix:
    """The matrix in the layout for its device and dtype; `single_rows`: it will often meet one row alone."""
    packable = weight_OI.device.type == "cpu" and weight_OI.dtype in (torch.float32, torch.bfloat16)
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if packable and has_onednn:
        return PackedMatrix(weight_OI, single_rows=single_rows)
    return PlainMatrix(weight_OI.contiguous())


class Norm:
    """RMSNorm without its weight and without its factor sqrt(D): both are folded into the matrix that follows.

    x / sqrt(mean(x^2) + eps) = sqrt(D) * x / sqrt(|x|^2 + D*eps), and the last root is the hypotenuse over |x| and
    sqrt(D*eps): three small operations where the definition takes five.
    """

    def __init__(self, *, width: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        self._half = dtype.itemsize < 4
        self._leg = torch.tensor(math.sqrt(width * eps), dtype=torch.float32 if self._half else dtype, device=device)

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Each row over the hypotenuse, [N, D]; half precisions are normed in float32."""
        if self._half:
            x_ND_float = x_ND.float()
            length_N1 = torch.linalg.vector_norm(x_ND_float, 2, -1, True)
            return torch.div(x_ND_float, length_N1.hypot_(self._leg)).to(x_ND.dtype)
        return torch.div(x_ND, torch.linalg.vector_norm(x_ND, 2, -1, True).hypot_(self._leg))


def fold_norm(weight_OI: Tensor, norm_I: Tensor) -> Tensor:
    """The matrix that takes `Norm`'s output where `weight_OI` took the full RMSNorm's with weight `norm_I`."""
    return weight_OI * (norm_I * math.sqrt(norm_I.shape[0]))


def _activate(x: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return x.relu_()
    if activation == "silu":
        return F.silu(x, inplace=True)
    return F.gelu(x, approximate="tanh" if activation == "gelu_new" else "none")
