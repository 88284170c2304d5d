"""How much device memory the weights will take, computed before any is read."""

import math

import torch

from model_store.model.config import layout_of
from model_store.model.spec import ModelSpec
from server.engine.pytorch.matrices.bitsandbytes_matrix import BYTES_PER_WEIGHT
from server.engine.pytorch.matrices.int8_matrix import int8_products_are_exact


def weight_bytes(spec: ModelSpec, dtype: torch.dtype, quantization: str) -> int:
    """The bytes of PyTorch's weights if it computes in `dtype`; `quantization` as in `build_model`."""
    in_layers = output = float(dtype.itemsize)
    if quantization == "int8":
        in_layers = output = 1.0 if int8_products_are_exact() else 4.0
    elif quantization == "int4":
        output = 1.0 if int8_products_are_exact() else 4.0
    elif quantization != "none":
        in_layers = BYTES_PER_WEIGHT[quantization]
    # The output matrix has a folded norm or its own layout, so a tied one is in memory twice.
    count = spec.target_vocab_size * spec.width * output
    layout = layout_of(spec)
    sizes: dict[str, float] = {}  # bytes per number, by matrix name
    for sublayer in layout.sublayers():
        sizes |= {f"{matrix}.weight": in_layers for matrix in (*sublayer.inputs, sublayer.out)}
        if dtype == torch.float16 and not layout.biases and not sublayer.has_heads:  # as in `build_model`
            sizes[f"{sublayer.out}.weight"] = 4.0
    for name, shape in layout.shapes():
        count += math.prod(shape) * sizes.get(name, dtype.itemsize)
    return math.ceil(count)
