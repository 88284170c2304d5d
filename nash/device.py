"""The device of a run: one for training, its teacher, calibration, evaluation and the measurement of speed.

It belongs to the machine and not to the work: a run may continue on another one, as it may in another precision.
"""

from nash import ranks
from nash.errors import RequestError
from server.engine.capabilities import AUTO, why_not
from server.engine.interface.config import EngineConfig
from server.engine.machine.cpus import cpu_name
from server.engine.machine.cuda import cuda_devices


def choose_device(asked: str) -> str:
    """The requested device; for "auto", a CUDA device if there is one, else the CPU.

    Of several processes, each gets the CUDA device of its own number.

    Raises:
        RequestError: the device is not known, or this machine does not have it, or not one for each process.
    """
    if asked == AUTO:
        return choose_device("cuda" if cuda_devices() and _count() else "cpu")
    refusal = why_not(EngineConfig(device=asked))
    if refusal is not None:
        raise RequestError(f"{refusal}, or {AUTO!r}")
    if asked == "cpu":
        return asked
    there = _count()
    if not there:
        raise RequestError(f"device {asked!r} is not available on this machine: use 'cpu', or {AUTO!r}")
    if ranks.count() > 1:
        return _own(asked, there)
    if number_of(asked) >= there:
        raise RequestError(f"device {asked!r} does not exist: this machine has {there}, numbered from 0")
    return asked


def device_name(device: str) -> str:
    """What the maker calls the processor or the GPU behind a device."""
    return cpu_name() if device == "cpu" else cuda_devices()[number_of(device)].name


def number_of(device: str) -> int:
    """The number of a CUDA device; "cuda" is the first one."""
    return int(device.partition(":")[2] or 0)


def _own(asked: str, there: int) -> str:
    own = f"cuda:{ranks.local_number()}"
    if asked not in ("cuda", own):
        raise RequestError(f"device {asked!r} is one GPU, but {ranks.count()} processes were started: use 'cuda'")
    if ranks.local_number() >= there:
        raise RequestError(f"more processes were started here than the {there} CUDA devices: start one for each device")
    return own


def _count() -> int:
    """How many CUDA devices PyTorch can use."""
    import torch  # slow, so "auto" asks the driver first

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
