"""The CUDA devices that the driver reports. Needs no torch."""

import ctypes
from dataclasses import dataclass
from functools import cache

FIRST_WITH_BFLOAT16 = (8, 0)  # the first compute capability whose multipliers take it

_DRIVERS = ("libcuda.so.1", "nvcuda.dll")
_COMPUTE_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True, kw_only=True)
class CudaDevice:
    """One device; its number is its position among all devices."""

    name: str
    major: int
    minor: int

    @property
    def compute_capability(self) -> str:
        """As NVIDIA writes it, such as 8.0."""
        return f"{self.major}.{self.minor}"

    @property
    def has_bfloat16(self) -> bool:
        """Whether its multipliers take bfloat16."""
        return (self.major, self.minor) >= FIRST_WITH_BFLOAT16


@cache
def cuda_devices() -> tuple[CudaDevice, ...]:
    """The devices that this process may use; none without a driver."""
    driver = _driver()
    count = ctypes.c_int()
    if driver is None or driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_device(driver, number) for number in range(count.value))


def _driver() -> ctypes.CDLL | None:
    for name in _DRIVERS:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _device(driver: ctypes.CDLL, number: int) -> CudaDevice:
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(handle), number)
    driver.cuDeviceGetName(name, len(name), handle)
    values = [ctypes.c_int() for _ in _COMPUTE_CAPABILITY]
    for value, attribute in zip(values, _COMPUTE_CAPABILITY, strict=True):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
    return CudaDevice(name=name.value.decode("utf-8", "replace"), major=values[0].value, minor=values[1].value)
