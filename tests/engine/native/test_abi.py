"""The operator's structures as C++ and as Python have them: one name, one type, one order, sizes compared at load."""

import ctypes
import re
from pathlib import Path

import pytest

from server.engine.errors import LoadError
from server.engine.native.operator import library as native
from server.engine.native.operator.set_choice import chosen_set, library_path
from server.engine.native.operator.sets import BY_NAME

ABI = Path(native.__file__).with_name("abi.h")
_KINDS = {ctypes.c_int32: "int32_t", ctypes.c_int64: "int64_t", ctypes.c_float: "float", ctypes.c_double: "double"}


def name_of(structure: type) -> str:
    """As C++ calls it: in Python some names are taken."""
    return structure.__name__.removeprefix("Native")


def declared() -> dict[str, list[tuple[str, str]]]:
    """Of each structure in abi.h its fields, by name and type; every pointer is called a pointer."""
    text = re.sub(r"//.*", "", ABI.read_text(encoding="utf-8"))
    structures = {}
    for name, body in re.findall(r"struct (\w+) \{(.*?)\};", text, re.DOTALL):
        fields: list[tuple[str, str]] = []
        for line in filter(None, (each.strip() for each in body.split(";"))):
            found = re.fullmatch(r"((?:const )?\w+)\** ?(.*)", line.replace("* ", "*"), re.DOTALL)
            assert found is not None, f"{name}: {line}"
            words, names = found.groups()
            for each in re.split(r",\s*", names):
                kind = "pointer" if "*" in line else words
                fields.append((re.sub(r"\[\d+\]", "", each.lstrip("*")), kind))
        structures[name] = fields
    return structures


def mirrored(structure: type[ctypes.Structure]) -> list[tuple[str, str]]:
    fields = []
    for name, kind, *_ in structure._fields_:
        if kind is native.RowSeconds:
            kind = ctypes.c_double
        plain = _KINDS.get(kind)
        nested = name_of(kind) if issubclass(kind, ctypes.Structure) else "pointer"
        fields.append((name, plain or nested))
    return fields


def test_both_sides_declare_the_same() -> None:
    assert declared() == {name_of(structure): mirrored(structure) for structure in native.STRUCTURES}
    assert list(declared()) == [name_of(structure) for structure in native.STRUCTURES]


def test_a_library_of_other_sources_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    name = chosen_set().name
    if name is None:
        pytest.skip("there is no operator on this machine")

    class Wider(ctypes.Structure):
        _fields_ = (*native.Rows._fields_, ("more", ctypes.c_int64))

    structures = tuple(Wider if each is native.Rows else each for each in native.STRUCTURES)
    monkeypatch.setattr(native, "STRUCTURES", structures)
    with pytest.raises(LoadError, match=r"was built from different sources .*Wider has 56 bytes there, 64 here"):
        native.Library(library_path(BY_NAME[name]))
