"""The instruction sets that the operator is built for.

Imports nothing beyond the standard library: `setup.py` reads the same table.
"""

from dataclasses import dataclass

_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
_AVX512_VNNI = (*_AVX512, "avx512_vnni")


@dataclass(frozen=True)
class InstructionSet:
    """One library of the operator.

    `needs` are features as Linux names them in /proc/cpuinfo: those listed there are also enabled by the kernel.
    """

    name: str
    machine: str  # as platform.machine() returns it
    needs: tuple[str, ...]
    compiler_flags: tuple[str, ...]
    found_in: str

    @property
    def file_name(self) -> str:
        """The library's file name, beside this module."""
        return f"stack_{self.name.replace('-', '_')}.so"


def _x86(name: str, needs: tuple[str, ...], found_in: str) -> InstructionSet:
    flags = tuple("-m" + need.replace("_", "") for need in needs)
    return InstructionSet(name, "x86_64", needs, flags, found_in)


# Best first.
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
