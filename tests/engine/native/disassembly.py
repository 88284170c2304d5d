"""What a library of the operator must consist of, by its set of instructions, and what it does consist of."""

import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.missing_programs import skip_or_fail


@dataclass(frozen=True)
class Expected:
    """Regular expressions of lines of a disassembly."""

    there: tuple[str, ...]
    absent: tuple[str, ...]


FMA_256, FMA_512 = r"vfmadd\d+ps\s.*%ymm", r"vfmadd\d+ps\s.*%zmm"
DOT_256, DOT_512 = r"\{vex\} vpdpbusd\s.*%ymm", r"vpdpbusd\s.*%zmm"
ANY_DOT, BFLOAT16_512 = r"vpdpbusd", r"vdpbf16ps\s.*%zmm"
# Registers that instructions of AVX2 cannot name.
OF_AVX512 = (r"%zmm", r"%[xy]mm(1[6-9]|2\d|3[01])\b", r"%k[0-7]\b")
WIDENED = (r"\bsmull2?\s.*\.8h", r"\bsadalp|\bsaddlp")
FMA_ARM, DOT_ARM, BFLOAT16_ARM = r"\bfmla\s", r"\bsdot\s", r"\bbfdot\s"

EXPECTED = {
    "avx512-bf16": Expected((FMA_512, DOT_512, BFLOAT16_512), (DOT_256,)),
    "avx512-vnni": Expected((FMA_512, DOT_512), (BFLOAT16_512, DOT_256)),
    "avx512": Expected((FMA_512, r"vpmaddwd\s.*%zmm"), (ANY_DOT, "vdpbf16ps")),
    "avx-vnni": Expected((FMA_256, DOT_256), OF_AVX512),
    "avx2": Expected((FMA_256, r"vpmaddwd\s.*%ymm"), (*OF_AVX512, ANY_DOT)),
    "neon-bf16": Expected((FMA_ARM, DOT_ARM, BFLOAT16_ARM), WIDENED[:1]),
    "neon-dotprod": Expected((FMA_ARM, DOT_ARM), (BFLOAT16_ARM, *WIDENED[:1])),
    "neon": Expected((FMA_ARM, *WIDENED), (DOT_ARM, BFLOAT16_ARM)),
}


def disassembled(library: Path, machine: str) -> str:
    program = "objdump" if machine == platform.machine() else f"{machine}-linux-gnu-objdump"
    if shutil.which(program) is None:
        skip_or_fail(f"{program} is missing: install Debian's package binutils, or that of {machine}")
    command = [program, "--disassemble", "--no-show-raw-insn", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def check(code: str, expected: Expected) -> None:
    for pattern in expected.there:
        assert re.search(pattern, code), f"{pattern} is not there"
    for pattern in expected.absent:
        found = re.search(pattern, code)
        assert found is None, f"{found} is there"
