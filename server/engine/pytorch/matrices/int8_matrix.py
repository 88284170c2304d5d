"""8-bit integer products in PyTorch, with the native operator's numbers: int8 where that operator is not available.

Weights are rounded to 127 steps on each side of zero per output, inputs to 127 steps on each side per row, so that a
row's result does not depend on its neighbours. Axes: N rows, I inputs, O outputs.
"""

from functools import cache

import torch
from torch import Tensor

from server.engine.pytorch.matrices.matrix import activate_in_place

_STEPS = 127


class Int8Matrix:
    """A linear map of float32 rows whose product is computed in integers."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        """Both in float32."""
        peak_O1 = weight_OI.abs().amax(1, keepdim=True)
        scale_O1 = peak_O1 / _STEPS
        steps_OI = (weight_OI / torch.where(peak_O1 == 0, 1.0, scale_O1)).round_().clamp_(-_STEPS, _STEPS)
        # PyTorch 2.13 reads past a matrix with one input, because its strides look like those of one output.
        self._exact = weight_OI.shape[1] > 1 and int8_products_are_exact()
        self._steps_IO = (steps_OI.to(torch.int8) if self._exact else steps_OI).t()
        self._scale_O = scale_O1.view(-1)
        self._bias_O = bias_O
        self.nbytes = self._steps_IO.nbytes + self._scale_O.nbytes + (0 if bias_O is None else bias_O.nbytes)

    def apply(self, x_NI: Tensor) -> Tensor:
        steps_NI, step_N1 = _rounded_rows(x_NI)
        if self._exact:
            sums_NO = torch._int_mm(steps_NI.to(torch.int8), self._steps_IO).float()
        else:
            sums_NO = torch.mm(steps_NI, self._steps_IO)
        result_NO = sums_NO.mul_(self._scale_O * step_N1)
        return result_NO if self._bias_O is None else result_NO.add_(self._bias_O)

    def activate(self, x_NI: Tensor, activation: str) -> Tensor:
        return activate_in_place(self.apply(x_NI), activation)

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        return residual_NO.add_(self.apply(x_NI))


class RoundedRowsMatrix:
    """The same rounded rows with weights as given: int4's, which are whole multiples of their steps."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        """Both in float32."""
        self._weight_IO = weight_OI.t()
        self._bias_O = bias_O
        self.nbytes = weight_OI.nbytes + (0 if bias_O is None else bias_O.nbytes)

    def apply(self, x_NI: Tensor) -> Tensor:
        steps_NI, step_N1 = _rounded_rows(x_NI)
        result_NO = torch.mm(steps_NI, self._weight_IO).mul_(step_N1)
        return result_NO if self._bias_O is None else result_NO.add_(self._bias_O)

    def activate(self, x_NI: Tensor, activation: str) -> Tensor:
        return activate_in_place(self.apply(x_NI), activation)

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        return residual_NO.add_(self.apply(x_NI))


def _rounded_rows(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Each row in whole steps, and its step size [N, 1]."""
    peak_N1 = x_NI.abs().amax(1, keepdim=True)  # NaN stays NaN and reaches the result through the step
    step_N1 = torch.where(peak_N1 == 0, 1.0, peak_N1 / _STEPS)
    return (x_NI * step_N1.reciprocal()).round_(), step_N1


@cache
def int8_products_are_exact() -> bool:
    """Whether this processor's integer products are exact: without VNNI, oneDNN's sums of pairs saturate.

    If not, the same integers are multiplied in float32, which holds their sums exactly up to 2^24.
    """
    for rows in (1, 8, 33):
        x, weight = (torch.full((n, 256), _STEPS, dtype=torch.int8) for n in (rows, 64))
        if not torch.equal(torch._int_mm(x, weight.t()), torch.full((rows, 64), 256 * _STEPS**2, dtype=torch.int32)):
            return False
    return True
