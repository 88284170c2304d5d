"""Which instruction set this processor runs the operator with."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from server.engine.machine.cpus import processor_features
from server.engine.native.operator.sets import BY_NAME, SETS, InstructionSet

VARIABLE = "NASH_CPU_ISA"  # forces one of the sets, for tests and comparisons


@dataclass(frozen=True)
class SetChoice:
    """The set that the operator runs on; without a name, PyTorch does the work."""

    name: str | None
    why: str


def runs_here(each: InstructionSet) -> bool:
    """Whether this processor has everything the set needs."""
    return platform.machine() == each.machine and processor_features().issuperset(each.needs)


def built(each: InstructionSet) -> bool:
    """Whether its library was built with the package."""
    return library_path(each).exists()


def library_path(each: InstructionSet) -> Path:
    """The path of its library."""
    return Path(__file__).with_name(each.file_name)


def available_sets() -> tuple[str, ...]:
    """The sets that were built and that this processor runs, best first."""
    return tuple(each.name for each in SETS if runs_here(each) and built(each))


def chosen_set() -> SetChoice:
    """The set to run on: the one that NASH_CPU_ISA names, else the best.

    Raises:
        ValueError: NASH_CPU_ISA names a set that does not exist, or that is not available here.
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
