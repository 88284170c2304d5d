"""How much memory a device still has, and what weights will take of it."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from model_store.model.config import layout_of
from model_store.model.spec import ModelSpec
from server.engine.bitsandbytes_matrix import BYTES_PER_WEIGHT
from server.engine.int8_matrix import int8_products_are_exact

_MEMINFO = Path("/proc/meminfo")
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def available_bytes(device: torch.device) -> int:
    """Memory that can be allocated now: the device's, or for the CPU the machine's, within this process' limits."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([_machine_bytes(), *_group_bytes()])


def _machine_bytes() -> int:
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_bytes() -> Iterator[int]:
    """What each control group (of version 2) around this process leaves: a container may have less than its machine."""
    try:
        lines = _OWN_GROUP.read_text().splitlines()
    except OSError:  # another system, or none of it mounted
        return
    for own in [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]:
        path = _GROUPS / own
        for group in (path, *path.parents):
            if group.is_relative_to(_GROUPS):
                try:
                    most = (group / "memory.max").read_text().strip()
                    used = int((group / "memory.current").read_text())
                    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                except OSError:  # this group counts no memory
                    continue
                if most != "max":  # files that were read count as used, and give way
                    yield max(0, int(most) - used + int(stat["inactive_file"]))


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
