"""Files that say what a user saw, and the comparison with what a user sees now.

`python -m pytest tests/golden --golden-update` writes anew what has changed. A test that wrote a file fails, so that
nothing is written in passing: look at the difference, then run the tests without the flag.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.golden.masks import Mask, masked

FOLDER = Path(__file__).with_name("expected")

_SHOWN = 20  # differences; more say nothing more
_DIGITS = 6  # of the numbers that are written
_WIDTH = 120
_SHORT = 24


@dataclass(frozen=True)
class Golden:
    """The files of a folder, to be compared with or, where `update` is true, to be written."""

    update: bool
    folder: Path = FOLDER

    def check(self, name: str, found: Any, *masks: Mask, relative: float = 1e-3, absolute: float = 1e-4) -> None:
        """Compare what was found, masked, with the file of this name; a file that is missing is a fault.

        Everything must be equal. Only numbers with a fraction may differ: by `relative` or by `absolute`.
        """
        path = self.folder / f"{name}.json"
        seen = json.loads(json.dumps(masked(found, masks), allow_nan=False))
        known = path.exists()
        faults = []
        if known:
            expected = json.loads(path.read_text(encoding="utf-8"))
            faults = list(differences(seen, expected, relative=relative, absolute=absolute))
        if self.update and (faults or not known):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pretty(seen) + "\n", encoding="utf-8")
            pytest.fail(f"{path} was written: look at what has changed, and run again without --golden-update")
        assert known, f"{path} is missing: a golden test without its file says nothing"
        listed = "\n".join(faults[:_SHOWN])
        assert not faults, f"{len(faults)} differences from {path}:\n{listed}"


def differences(found: Any, expected: Any, path: str = "", *, relative: float, absolute: float) -> Iterator[str]:
    """Where two JSON documents differ, a line each."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            where = f"{path}.{key}" if path else key
            if key not in found:
                yield f"{where} is not there any more"
            elif key not in expected:
                yield f"{where} is new"
            else:
                yield from differences(found[key], expected[key], where, relative=relative, absolute=absolute)
    elif isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            yield f"{path} has {len(found)} items, expected are {len(expected)}"
        for i, (one, other) in enumerate(zip(found, expected, strict=False)):
            yield from differences(one, other, f"{path}[{i}]", relative=relative, absolute=absolute)
    elif type(found) is not type(expected) or not _same(found, expected, relative, absolute):
        yield f"{path} is {found!r}, expected is {expected!r}"


def _same(found: Any, expected: Any, relative: float, absolute: float) -> bool:
    if isinstance(found, float):
        return math.isclose(found, expected, rel_tol=relative, abs_tol=absolute)
    return bool(found == expected)


def pretty(document: Any, indent: int = 0) -> str:
    """JSON in which lists of short values, and everything that fits on a line, stand on one."""
    if isinstance(document, float):
        return json.dumps(float(f"{document:.{_DIGITS}g}"))
    inner, outer = " " * (indent + 1), " " * indent
    if isinstance(document, dict):
        items = [f"{json.dumps(key)}: {pretty(value, indent + 1)}" for key, value in document.items()]
        begin, end = "{", "}"
    elif isinstance(document, list):
        items = [pretty(value, indent + 1) for value in document]
        begin, end = "[", "]"
    else:
        return json.dumps(document)
    line = f"{begin}{', '.join(items)}{end}"
    plain = isinstance(document, list) and all(_is_short(value) for value in document)
    if plain or (len(line) + indent <= _WIDTH and "\n" not in line):
        return line
    rest = f",\n{inner}".join(items)
    return f"{begin}\n{inner}{rest}\n{outer}{end}"


def _is_short(value: Any) -> bool:
    return not isinstance(value, dict | list) and len(str(value)) <= _SHORT
