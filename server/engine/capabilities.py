"""What this machine can run: which engine, and which dtypes on it. Needs no torch.

The engines are our native operator and PyTorch. Code that loads a model checks here first, so that a request for
something the machine lacks is refused in one line, before any library is asked for it.
"""

import re
from dataclasses import replace

from model_store.model.model import INT4, Model
from server.engine.errors import LoadError
from server.engine.interface.config import MOST_THREADS, EngineConfig
from server.engine.machine.cpus import share_of_the_machine, torch_instruction_sets, usable_cpus
from server.engine.machine.cuda import FIRST_WITH_BFLOAT16, cuda_devices
from server.engine.native.operator.library import operator_set

AUTO = "auto"
DTYPES = ("float32", "bfloat16", "float16", "float64", "int8", "int4")

NATIVE_DTYPES = ("float32", "bfloat16", "int8", "int4")

# What "auto" chooses from, fastest first. int4 is left out: it is faster than int8 for one request at a time and slower
# for many, and only the person who serves the model knows which applies. Each line ends with float32, which needs no
# quality record.
NATIVE_SPEED = ("int8", "bfloat16", "float32")
TORCH_SPEED = ("bfloat16", "float32")
CUDA_SPEED = ("bfloat16", "float16", "float32")

_WHOLE_NUMBERS = {"int8": "bnb-int8", "int4": "bnb-nf4"}  # and their counterparts on CUDA

_CHOICES = {
    "backend": ("auto", "native", "torch"),
    "graphs": ("auto", "on", "off"),
    "quantization": ("none", "bnb-int8", "bnb-nf4"),
}

_DEVICE = re.compile(r"cpu|cuda(:[0-9]{1,3})?")


def check_machine(config: EngineConfig, model: Model | None = None) -> None:
    """Refuse what this machine cannot run, before anything is imported or read. `dtype` may be "auto".

    `model`: the model to be run this way, if available.

    Raises:
        LoadError: the machine lacks the dtype, the device, the instruction set that NASH_CPU_ISA asks for or that many
            threads, or the model lacks its calibration.
    """
    check_threads(config.threads)
    operator_set()
    refusal = None if config.dtype == AUTO else why_not(config)
    if refusal is not None:
        raise LoadError(refusal)
    if model is not None and config.dtype == "int4":
        check_calibrated(model)


def check_threads(asked: int | None) -> None:
    """Raises: LoadError: more threads than this process may run at once; None asks for none."""
    if asked is None:
        return
    if not 1 <= asked <= MOST_THREADS:
        raise LoadError(f"threads is {asked}: it must be from 1 to {MOST_THREADS}")
    usable = usable_cpus()
    if asked > usable:
        raise LoadError(f"threads is {asked}, but this process may use {share_of_the_machine()}: give at most {usable}")


def check_calibrated(model: Model) -> None:
    """Raises: LoadError: a model has no four-bit weights."""
    if not model.calibrated:
        raise LoadError(
            f"the model has no {INT4}, which dtype 'int4' needs: run `nash models publish NAME DIR --calibrate-int4 "
            "DATA`, where DIR is the folder it was published from and DATA has rows of its task, or use 'int8' "
            f"({model.folder})"
        )


def why_not_native(config: EngineConfig) -> str | None:
    """Why the native operator cannot run a model with this configuration; None if it can.

    Raises:
        LoadError: NASH_CPU_ISA asks for an instruction set that is not available here.
    """
    if config.device != "cpu":
        return f"it computes on CPUs, not on {config.device!r}"
    if config.graphs == "on":
        return "graphs need PyTorch"
    if config.quantization != "none":
        return f"quantization {config.quantization!r} needs PyTorch"
    if config.dtype not in NATIVE_DTYPES:
        return f"it computes in {', '.join(NATIVE_DTYPES)}, not in {config.dtype!r}"
    choice = operator_set()
    return choice.why if choice.name is None else None


def engine_name(config: EngineConfig) -> str:
    """The engine that runs a model with this configuration, as named in metrics and records: `native-SET` or `torch`.

    Raises:
        LoadError: NASH_CPU_ISA asks for an instruction set that is not available here.
    """
    if config.backend == "torch" or why_not_native(config) is not None:
        return "torch"
    return f"native-{operator_set().name}"


def why_not(config: EngineConfig) -> str | None:
    """Why this machine refuses this configuration: the value, what the machine has, what to use instead; else None.

    Raises:
        LoadError: NASH_CPU_ISA asks for an instruction set that is not available here.
    """
    for key, known in _CHOICES.items():
        if getattr(config, key) not in known:
            *others, last = map(repr, known)
            return f"{key} {getattr(config, key)!r} is not known: use {', '.join(others)} or {last}"
    dtype, quantization = config.dtype, config.quantization
    if not _DEVICE.fullmatch(config.device):
        return f"device {config.device!r} is not known: use 'cpu', 'cuda' or 'cuda:1'"
    if dtype not in DTYPES:
        return f"dtype {dtype!r} is not supported: use one of {AUTO}, {', '.join(DTYPES)}"
    if dtype in _WHOLE_NUMBERS and config.device != "cpu":
        return f"dtype {dtype!r} is for CPUs: use quantization {_WHOLE_NUMBERS[dtype]!r} on {config.device!r}"
    if dtype in _WHOLE_NUMBERS and quantization != "none":
        return f"dtype {dtype!r} and quantization {quantization!r} cannot be combined: give one"
    if dtype == "float64" and quantization != "none":
        return f"quantization {quantization!r} cannot compute in float64: use 'bfloat16'"
    if config.backend == "native" and (obstacle := why_not_native(config)) is not None:
        return f"backend 'native' is not possible: {obstacle}; use 'torch', or 'auto'"
    if config.device != "cpu":
        return _why_not_on_cuda(config)
    if dtype == "float16":
        return "dtype 'float16' is for CUDA devices: use 'bfloat16' or 'float32' on a CPU"
    if dtype in NATIVE_DTYPES and engine_name(config) != "torch":
        return None
    obstacle = {"bfloat16": torch_bfloat16, "int8": torch_int8, "int4": torch_int8}.get(dtype, lambda: None)()
    return None if obstacle is None else f"dtype {dtype!r} is not possible in PyTorch on this CPU: {obstacle}"


def _why_not_on_cuda(config: EngineConfig) -> str | None:
    """If the driver reports nothing about a device, PyTorch has the last word."""
    index = int(config.device.partition(":")[2] or 0)
    devices = cuda_devices()
    if config.dtype != "bfloat16" or index >= len(devices) or devices[index].has_bfloat16:
        return None
    found = devices[index]
    return (
        f"dtype 'bfloat16' needs compute capability {'.'.join(map(str, FIRST_WITH_BFLOAT16))} or higher, but "
        f"{config.device!r} ({found.name}) has {found.compute_capability}: use 'float16' or 'float32'"
    )


def torch_bfloat16() -> str | None:
    """Why PyTorch's products on this CPU do not take bfloat16; None if they do, even slowly."""
    has = set(torch_instruction_sets())
    if {"avx512bw", "avx512vl", "avx512dq"} <= has or "bf16" in has:
        return None
    return f"it needs AVX-512 (bw, vl, dq) or ARM's bf16, but PyTorch may use {_listed()}; use 'float32'"


def torch_int8() -> str | None:
    """Why PyTorch has no use for int8 on this CPU: without instructions for it, it is slower than float32."""
    if {"avx512_vnni", "avx_vnni"} & set(torch_instruction_sets()):
        return None
    return f"without VNNI it is slower than float32, and PyTorch may use {_listed()}; use 'float32'"


def native_bfloat16() -> str | None:
    """Why this CPU does not multiply in bfloat16 natively, so that PyTorch would have to emulate it; else None."""
    if {"avx512_bf16", "amx_bf16", "bf16"} & set(torch_instruction_sets()):
        return None
    return f"it needs avx512_bf16, amx_bf16 or ARM's bf16, but PyTorch may use {_listed()}"


def speed_order(config: EngineConfig) -> tuple[str, ...]:
    """The dtypes in which this machine can run a model, fastest first; `config.dtype` does not matter."""
    config = replace(config, dtype="float32")
    order: tuple[str, ...]
    if config.device != "cpu":
        order = CUDA_SPEED
    elif engine_name(config) != "torch":
        order = NATIVE_SPEED
    else:
        order = TORCH_SPEED if native_bfloat16() is None else TORCH_SPEED[-1:]
    return tuple(dtype for dtype in order if why_not(replace(config, dtype=dtype)) is None)


def _listed() -> str:
    return ", ".join(torch_instruction_sets()) or "none that are known here"
