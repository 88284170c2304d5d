"""What weights will take of a device's memory, known before any is read."""

import math

import torch

from model_store.model.config import layout_of
from model_store.model.spec import ModelSpec
from server.engine.pytorch.matrices.bitsandbytes_matrix import BYTES_PER_WEIGHT
from server.engine.pytorch.matrices.int8_matrix import int8_products_are_exact


def weight_bytes(spec: ModelSpec, dtype: torch.dtype, quantization: str) -> int:
    """What PyTorch's weights take, computed in `dtype`; `quantization` as `build_model` has it."""
    in_layers = output = float(dtype.itemsize)
    if quantization == "int8":
        in_layers = output = 1.0 if int8_products_are_exact() else 4.0
    elif quantization == "int4":
        output = 1.0 if int8_products_are_exact() else 4.0
    elif quantization != "none":
        in_layers = BYTES_PER_WEIGHT[quantization]
    # The output matrix holds a norm or a layout of its own, so a tied one is there twice.
    count = spec.target_vocab_size * spec.d_model * output
    layout = layout_of(spec)
    sizes: dict[str, float] = {}  # of a number, by the name of its matrix
    for sublayer in layout.sublayers():
        sizes |= {f"{matrix}.weight": in_layers for matrix in (*sublayer.inputs, sublayer.out)}
        if dtype == torch.float16 and not layout.biases and not sublayer.has_heads:  # as `build_model` has it
            sizes[f"{sublayer.out}.weight"] = 4.0
    for name, shape in layout.shapes():
        count += math.prod(shape) * sizes.get(name, dtype.itemsize)
    return math.ceil(count)
