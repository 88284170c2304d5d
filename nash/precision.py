"""Which precision training runs in: bfloat16 where the hardware multiplies in it, else float32.

A processor without such instructions imitates them, correctly and several times slower than float32. So bfloat16 that
is asked for by name is refused there, also where a run goes on or is done again: training across processors is not
equal to the bit in any precision, so nothing would be won by the wait.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nash.errors import RequestError
from server.engine.capabilities import native_bfloat16
from server.engine.machine.cuda import FIRST_WITH_BFLOAT16, cuda_devices

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class PrecisionChoice:
    """What a phase computes in, and why."""

    precision: Literal["float32", "bfloat16"]
    why: str


def choose_precision(asked: Precision) -> PrecisionChoice:
    """What is asked for; for "auto" bfloat16 where the device that trains has it, else float32.

    Raises:
        RequestError: bfloat16 is asked for by name, and the device does not have it.
    """
    if asked == "float32":
        return PrecisionChoice(precision="float32", why="asked for")
    obstacle = bfloat16_obstacle()
    if asked == "auto":
        if obstacle is None:
            return PrecisionChoice(precision="bfloat16", why="the hardware has it")
        return PrecisionChoice(precision="float32", why=f"no bfloat16: {obstacle}")
    if obstacle is not None:
        raise RequestError(f'precision "bfloat16" is not possible here: {obstacle}; use "auto" or "float32"')
    return PrecisionChoice(precision="bfloat16", why="asked for")


def check_precisions(asked: Iterable[Precision]) -> None:
    """Find out before anything is read whether training could run as asked.

    Raises:
        RequestError: it could not.
    """
    for each in asked:
        choose_precision(each)


def training_device() -> str:
    """Where training runs: "cuda" where PyTorch finds a device, else "cpu"."""
    if not cuda_devices():
        return "cpu"
    import torch  # slow, and a machine without a driver needs it not

    return "cuda" if torch.cuda.is_available() else "cpu"


def bfloat16_obstacle() -> str | None:
    """Why the device that trains has no bfloat16 of its own; None where it has."""
    if training_device() == "cpu":
        return native_bfloat16()
    device = cuda_devices()[0]
    if device.has_bfloat16:
        return None
    least = ".".join(map(str, FIRST_WITH_BFLOAT16))
    return f"it needs compute capability {least}, and {device.name} has {device.compute_capability}"
