"""The sets of instructions that the operator is built for, and which of them this processor runs.

Nothing beyond the standard library is imported here: the build reads the same table.
"""

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VARIABLE = "NASH_CPU_ISA"  # forces one of the sets, for tests and comparisons

_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
_AVX512_VNNI = (*_AVX512, "avx512_vnni")


@dataclass(frozen=True)
class InstructionSet:
    """One library of the operator.

    `needs` are features as Linux names them in /proc/cpuinfo: what it names, the kernel has switched on as well.
    """

    name: str
    machine: str  # as platform.machine() says
    needs: tuple[str, ...]
    compiler_flags: tuple[str, ...]
    found_in: str

    @property
    def file_name(self) -> str:
        """Of the library, beside this module."""
        return f"stack_{self.name.replace('-', '_')}.so"


def _x86(name: str, needs: tuple[str, ...], found_in: str) -> InstructionSet:
    flags = tuple("-m" + need.replace("_", "") for need in needs)
    return InstructionSet(name, "x86_64", needs, flags, found_in)


# The best first.
SETS = (
    _x86("avx512-bf16", (*_AVX512_VNNI, "avx512_bf16"), "Zen 4 and later, Cooper Lake, Sapphire Rapids and later"),
    _x86("avx512-vnni", _AVX512_VNNI, "Cascade Lake, Ice Lake"),
    _x86("avx512", _AVX512, "Skylake-SP"),
    _x86("avx-vnni", (*_AVX2, "avx_vnni"), "Intel's desktops from Alder Lake on"),
    _x86("avx2", _AVX2, "Haswell and later, Zen to Zen 3"),
    InstructionSet(
        "neon-bf16",
        "aarch64",
        ("asimd", "asimddp", "bf16", "i8mm"),
        ("-march=armv8.2-a+dotprod+bf16+i8mm",),
        "Neoverse V1, N2 and later",
    ),
    InstructionSet(
        "neon-dotprod",
        "aarch64",
        ("asimd", "asimddp"),
        ("-march=armv8.2-a+dotprod",),
        "Neoverse N1, Cortex-A76 and later",
    ),
    InstructionSet("neon", "aarch64", ("asimd",), ("-march=armv8-a",), "Cortex-A72 and every other AArch64"),
)
BY_NAME = {each.name: each for each in SETS}


@dataclass(frozen=True)
class SetChoice:
    """The set that the operator runs on; without a name PyTorch does its work."""

    name: str | None
    why: str


@cache
def processor_features() -> frozenset[str]:
    """What Linux says that this processor can do; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def runs_here(each: InstructionSet) -> bool:
    """Whether this processor has all that the set needs."""
    return platform.machine() == each.machine and processor_features().issuperset(each.needs)


def built(each: InstructionSet) -> bool:
    """Whether its library was built with the package."""
    return library_path(each).exists()


def library_path(each: InstructionSet) -> Path:
    """Where its library stands."""
    return Path(__file__).with_name(each.file_name)


def available_sets() -> tuple[str, ...]:
    """Sets that were built and that this processor runs, the best first."""
    return tuple(each.name for each in SETS if runs_here(each) and built(each))


def chosen_set() -> SetChoice:
    """The set to run on: the one that NASH_CPU_ISA names, else the best.

    Raises:
        ValueError: NASH_CPU_ISA names a set that does not exist, or one that this machine has not.
    """
    forced, here = os.environ.get(VARIABLE), available_sets()
    if forced:
        has = f"this machine has {', '.join(here)}" if here else "this machine has none of them"
        if forced not in BY_NAME:
            raise ValueError(f"{VARIABLE} is {forced!r}: it must be one of {', '.join(BY_NAME)}; {has}")
        if forced not in here:
            lacks = "was not built" if runs_here(BY_NAME[forced]) else "does not run on this processor"
            raise ValueError(f"{VARIABLE} is {forced!r}, which {lacks}: {has}")
        return SetChoice(forced, f"{VARIABLE} says so")
    if here:
        best = next((each.name for each in SETS if runs_here(each)), None)
        why = "the best that this processor runs" if here[0] == best else f"the best that was built; {best} was not"
        return SetChoice(here[0], why)
    runnable = [each.name for each in SETS if runs_here(each)]
    if runnable:
        return SetChoice(None, f"it was not built, for want of a C++ compiler; this processor would run {runnable[0]}")
    return SetChoice(None, "this processor has neither AVX2 with FMA nor NEON, or its system is not Linux")
