"""How much memory a device still has, and what weights will take of it."""

import math
import os
from pathlib import Path

import torch

from model_store.spec import ModelSpec
from server.engine.bitsandbytes_matrix import BYTES_PER_WEIGHT
from server.engine.int8_matrix import int8_products_are_exact

_MEMINFO = Path("/proc/meminfo")


def available_bytes(device: torch.device) -> int:
    """Memory that can be allocated now: the device's, or the machine's for the CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def weight_bytes(spec: ModelSpec, dtype: torch.dtype, quantization: str) -> int:
    """What PyTorch's weights take, computed in `dtype`; `quantization` as `build_model` has it."""
    in_layers = output = float(dtype.itemsize)
    if quantization == "int8":
        in_layers = output = 1.0 if int8_products_are_exact() else 4.0
    elif quantization != "none":
        in_layers = BYTES_PER_WEIGHT[quantization]
    # The output matrix holds a norm or a layout of its own, so a tied one is there twice.
    count = spec.target_vocab_size * spec.d_model * output
    for name, shape in spec.tensor_shapes():
        if dtype == torch.float16 and name.endswith("DenseReluDense.wo.weight"):
            each = 4.0
        elif len(shape) == 2 and (".block." in name or ".layers." in name) and "relative" not in name:
            each = in_layers
        else:
            each = dtype.itemsize
        count += math.prod(shape) * each
    return math.ceil(count)
