"""Which processor this machine has, and how much of it this process may use. Needs no torch."""

import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# The names in /proc/cpuinfo that decide how a model is computed, as the kernel writes them.
_INSTRUCTION_SETS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)

# The name prefixes that oneDNN, and so PyTorch, leaves unused under each value of ONEDNN_MAX_CPU_ISA.
_UNUSED_BELOW = {
    "SSE41": ("avx", "fma", "amx"),
    "AVX": ("avx", "fma", "amx"),
    "AVX2": ("avx512", "avx_vnni", "amx"),
    "AVX2_VNNI": ("avx512", "amx"),
    "AVX2_VNNI_2": ("avx512", "amx"),
    "AVX512_CORE": ("avx512_", "amx"),
    "AVX512_CORE_VNNI": ("avx512_bf16", "avx512_fp16", "amx"),
    "AVX512_CORE_BF16": ("avx512_fp16", "amx"),
}


@cache
def processor_features() -> frozenset[str]:
    """What this processor can do, according to Linux; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def cpu_name() -> str:
    """The processor's own name; "unknown" if the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name")
    return next(names, "") or platform.processor() or "unknown"


def instruction_sets() -> tuple[str, ...]:
    """The processor's instruction sets that matter here; none if the system does not tell."""
    found = processor_features()
    return tuple(name for name in _INSTRUCTION_SETS if name in found)


def torch_instruction_sets() -> tuple[str, ...]:
    """The instruction sets that PyTorch's products may use: the variable ONEDNN_MAX_CPU_ISA limits them."""
    unused = _UNUSED_BELOW.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(), ())
    return tuple(name for name in instruction_sets() if not name.startswith(unused))


def usable_cpus(root: Path = Path("/")) -> int:
    """How many threads can run at once in this process: its cores, or fewer under a cgroup's quota; at least 1.

    A quota of one and a half gives one: a second thread would be stopped half of the time, and the first would wait
    for it at the end of every operation.
    """
    quota = cpu_quota(root)
    return available_cores() if quota is None else max(1, min(available_cores(), int(quota)))


def allowed_cpus() -> frozenset[int]:
    """The numbers of the cores on which the scheduler may run this process."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def available_cores() -> int:
    """The number of `allowed_cpus`."""
    return len(allowed_cpus())


def share_of_the_machine() -> str:
    """What `usable_cpus` counts, for messages."""
    cores, quota = available_cores(), cpu_quota()
    counted = "1 core" if cores == 1 else f"{cores} cores"
    return counted if quota is None else f"{counted}, limited to {quota:g} by its cgroup"


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processor time that this process's cgroups may use, in cores; None if nothing limits it.

    `root` contains proc and sys.
    """
    quotas = [_quota_of(folder) for folder in _cgroup_folders(root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def numa_nodes(root: Path = Path("/")) -> int:
    """How many parts the memory has, each close to some of the cores; 1 if the system does not tell."""
    return max(1, len([*(root / "sys/devices/system/node").glob("node[0-9]*")]))


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """This process's groups and all their ancestors, since each limits those below it.

    Inside a container /proc may name a folder that only the host sees; then the groups' root is the container's own.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers  # without controllers: version 2
        own = mount / name.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(mount))


def _quota_of(folder: Path) -> float | None:
    """The quota in cores: version 2 has it in `cpu.max` ("max 100000"), version 1 in two files; -1 means no limit."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = ((folder / f"cpu.cfs_{key}_us").read_text(encoding="ascii") for key in ("quota", "period"))
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else None
    except (OSError, ValueError):
        return None
