"""The sets of instructions that the operator is built for.

Nothing beyond the standard library is imported here: the build reads the same table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class InstructionSet:
    """One library of the operator."""

    name: str
    machine: str  # as platform.machine() says
    compiler_flags: tuple[str, ...]

    @property
    def file_name(self) -> str:
        """Of the library, beside this module."""
        return f"stack_{self.name.replace('-', '_')}.so"


# The best first.
SETS = (
    InstructionSet(
        "avx512-bf16",
        "x86_64",
        ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512bf16", "-mfma"),
    ),
)
