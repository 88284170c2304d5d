"""Weights in bitsandbytes' formats: LLM.int8 and NF4. Axes: N rows, I inputs, O outputs.

LLM.int8 here means its arithmetic on whole rows, weights scaled by output, inputs by row. Its second part, outlier
columns in half precision, is left out, because it picks the columns by all rows of a batch: a neighbour would change a
result, and the resulting sizes cannot be recorded as a CUDA graph.
"""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.errors import LoadError
from server.engine.pytorch.matrices.matrix import Matrix, activate_in_place

# Bytes per weight, including the scales of its block.
BYTES_PER_WEIGHT = {"bnb-int8": 1.0, "bnb-nf4": 0.5 + 4 / 64}

_STEPS = 127
_NF4_BLOCK = 64
_INT8_MULTIPLE = 16  # of inputs, for CUDA's products


class BnbInt8Matrix:
    """Eight bits per weight; the product is computed in integers. Inputs pass through float16."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        """The weight is float32; the bias has the dtype of the input rows."""
        self._library = _bitsandbytes()
        padded_OI = _pad_inputs(weight_OI, _INT8_MULTIPLE)
        self._peak_O = padded_OI.abs().amax(1)
        steps_OI = padded_OI * (_STEPS / torch.where(self._peak_O == 0, 1.0, self._peak_O))[:, None]
        self._steps_OI = steps_OI.round_().clamp_(-_STEPS, _STEPS).to(torch.int8)
        self._bias_O = bias_O
        self.nbytes = self._steps_OI.nbytes + self._peak_O.nbytes + (0 if bias_O is None else bias_O.nbytes)

    def apply(self, x_NI: Tensor) -> Tensor:
        functional = self._library.functional
        steps_NI, peak_N, _ = functional.int8_vectorwise_quant(_pad_inputs(x_NI.half(), _INT8_MULTIPLE))
        sums_NO = functional.int8_linear_matmul(steps_NI, self._steps_OI)
        scale_NO = (peak_N.view(-1, 1) / _STEPS) * (self._peak_O / _STEPS)
        result_NO: Tensor = (sums_NO * scale_NO).to(x_NI.dtype)
        return result_NO if self._bias_O is None else result_NO.add_(self._bias_O)

    def activate(self, x_NI: Tensor, activation: str) -> Tensor:
        return activate_in_place(self.apply(x_NI), activation)

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        return residual_NO.add_(self.apply(x_NI))


class BnbNf4Matrix:
    """Four bits per weight, NF4 in blocks of 64 inputs of one output; the product is computed in the rows' dtype."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        """The weight is float32; the bias has the dtype of the input rows."""
        self._library = _bitsandbytes()
        # Whole blocks: on CPUs bitsandbytes 0.50 takes the wrong blocks' scales if rows end inside a block.
        self._packed, self._state = self._library.functional.quantize_4bit(
            _pad_inputs(weight_OI, _NF4_BLOCK).contiguous(), blocksize=_NF4_BLOCK, quant_type="nf4"
        )
        self._bias_O = bias_O
        self.nbytes = self._packed.nbytes + self._state.absmax.nbytes + (0 if bias_O is None else bias_O.nbytes)

    def apply(self, x_NI: Tensor) -> Tensor:
        product_NO: Tensor = self._library.matmul_4bit(
            _pad_inputs(x_NI, _NF4_BLOCK), self._packed.t(), quant_state=self._state, bias=self._bias_O
        )
        return product_NO

    def activate(self, x_NI: Tensor, activation: str) -> Tensor:
        return activate_in_place(self.apply(x_NI), activation)

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        return residual_NO.add_(self.apply(x_NI))


def quantize(kind: str, weight_OI: Tensor, bias_O: Tensor | None) -> Matrix:
    """The map in the format `kind`, a key of BYTES_PER_WEIGHT."""
    return BnbInt8Matrix(weight_OI, bias_O) if kind == "bnb-int8" else BnbNf4Matrix(weight_OI, bias_O)


def check_bitsandbytes(kind: str, *, dtype: torch.dtype, device: torch.device) -> None:
    """Try a small product of the kind the model will need.

    Raises:
        LoadError: bitsandbytes is not installed, or does not support this device.
    """
    try:
        quantize(kind, torch.ones(64, 64, device=device), None).apply(torch.ones(1, 64, dtype=dtype, device=device))
    except ImportError as error:
        raise LoadError(f"quantization {kind!r} needs bitsandbytes ({error}): install it, or use 'none'") from error
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LoadError(
            f"quantization {kind!r} is not possible on {str(device)!r}: bitsandbytes says {reason!r}; use 'none'"
        ) from error


def _bitsandbytes() -> ModuleType:
    import bitsandbytes  # takes a second, so only import it when it is needed

    module: ModuleType = bitsandbytes
    return module


def _pad_inputs(x: Tensor, multiple: int) -> Tensor:
    missing = -x.shape[1] % multiple
    return F.pad(x, (0, missing)) if missing else x
