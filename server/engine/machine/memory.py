"""How much memory a device has left."""

import torch

from server.engine.machine import host_memory


def available_bytes(device: torch.device) -> int:
    """Memory that can be allocated now: the device's, or for the CPU the machine's within this process's limits."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return host_memory.available_bytes()
