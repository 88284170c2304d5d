"""The commands and flags that help pages name; what they say of them is for people."""

import re
from collections.abc import Iterator

_BORDERS = re.compile("[|\u2502\u2503]")
_FLAG = re.compile(r"--?[A-Za-z][\w-]*")
_COMMAND = re.compile(r"[a-z][a-z0-9-]*")
_DEEPEST = 4  # blanks before a flag or a command; the rest of an explanation stands deeper


def flags_of(page: str) -> list[str]:
    """All flags, sorted."""
    return sorted({flag for row in _rows(page) for flag in _leading_flags(row)})


def commands_of(page: str) -> list[str]:
    """All commands of a group, sorted."""
    _, _, listed = page.partition("Commands")
    words = (row.split()[0] for row in _rows(listed))
    return sorted({word for word in words if _COMMAND.fullmatch(word)})


def _rows(page: str) -> Iterator[str]:
    """The rows that begin with the name of something; a star marks what must be given."""
    for line in page.splitlines():
        row = _BORDERS.sub("", line).rstrip()
        depth = len(row) - len(row.lstrip(" *"))
        if row and 0 < depth <= _DEEPEST:
            yield row.lstrip(" *")


def _leading_flags(row: str) -> Iterator[str]:
    for word in re.split(r"[\s,/]+", row):
        if not _FLAG.fullmatch(word):
            return
        yield word
