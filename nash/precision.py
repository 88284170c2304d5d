"""The precision that training runs in: bfloat16 where the hardware multiplies in it, else float32.

A processor without bfloat16 instructions emulates them: the results are correct, but several times slower than float32.
So an explicit request for bfloat16 is refused there, even when a run is resumed or repeated: training is not bit-exact
across processors in any precision, so the wait would gain nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nash.device import number_of
from nash.errors import RequestError
from server.engine.capabilities import native_bfloat16
from server.engine.machine.cuda import FIRST_WITH_BFLOAT16, cuda_devices

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class PrecisionChoice:
    """The precision that a phase computes in, and the reason."""

    precision: Literal["float32", "bfloat16"]
    why: str


def choose_precision(asked: Precision, device: str) -> PrecisionChoice:
    """The requested precision; "auto" is bfloat16 if the device that trains has it, else float32.

    Raises:
        RequestError: bfloat16 is requested by name, and the device does not have it.
    """
    if asked == "float32":
        return PrecisionChoice(precision="float32", why="asked for")
    obstacle = bfloat16_obstacle(device)
    if asked == "auto":
        if obstacle is None:
            return PrecisionChoice(precision="bfloat16", why="the hardware has it")
        return PrecisionChoice(precision="float32", why=f"no bfloat16: {obstacle}")
    if obstacle is not None:
        raise RequestError(f'precision "bfloat16" is not possible here: {obstacle}; use "auto" or "float32"')
    return PrecisionChoice(precision="bfloat16", why="asked for")


def check_precisions(asked: Iterable[Precision], device: str) -> None:
    """Check, before any data is read, that training on the device can run in these precisions.

    Raises:
        RequestError: it cannot.
    """
    for each in asked:
        choose_precision(each, device)


def bfloat16_obstacle(device: str) -> str | None:
    """Why a device has no native bfloat16; None if it has."""
    if device == "cpu":
        return native_bfloat16()
    known = cuda_devices()
    if number_of(device) >= len(known):
        return "nothing is known about the device"
    found = known[number_of(device)]
    if found.has_bfloat16:
        return None
    least = ".".join(map(str, FIRST_WITH_BFLOAT16))
    return f"it needs compute capability {least}, and {found.name} has {found.compute_capability}"
