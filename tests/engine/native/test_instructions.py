"""What each library of the operator consists of: the instructions that its set is there for, and no newer ones.

It is all that can be said of a set that no machine at hand runs. ARM's libraries are looked at in `test_neon.py`, where
they are built.
"""

import platform

import pytest

from server.engine.native.operator.set_choice import built, library_path
from server.engine.native.operator.sets import BY_NAME, SETS, InstructionSet
from tests.engine.native.disassembly import EXPECTED, check, disassembled
from tests.missing_programs import skip_or_fail


def test_every_set_is_looked_at() -> None:
    assert set(EXPECTED) == set(BY_NAME)
    assert {each.machine for each in SETS} == {"x86_64", "aarch64"}


@pytest.mark.parametrize("name", [each.name for each in SETS if each.machine == "x86_64"])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86's libraries are built on x86")
def test_x86(name: str) -> None:
    each: InstructionSet = BY_NAME[name]
    if not built(each):
        skip_or_fail(f"the operator was not built for {name}: install a C++ compiler that knows it, and build again")
    check(disassembled(library_path(each), "x86_64"), EXPECTED[name])
