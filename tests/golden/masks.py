"""What cannot be the same twice, and so is shown as a word in the golden files. Each mask says why.

A mask hides a value only where it is of the kind that is expected there: anything else stays, and is a difference.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Hides values of one kind. `where` is a pattern for the keys that lead to a value, joined by dots.

    Numbers of list items are no part of them. `*` stands for any text, dots included.
    """

    where: str
    shown: str
    fits: Callable[[Any], bool]
    why: str


def masked(document: Any, masks: Sequence[Mask], path: str = "") -> Any:
    """A copy of a document in which what the masks hide is hidden."""
    for mask in masks:
        if fnmatchcase(path, mask.where) and mask.fits(document):
            return mask.shown
    if isinstance(document, dict):
        return {key: masked(value, masks, f"{path}.{key}" if path else str(key)) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [masked(value, masks, path) for value in document]
    return document


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_number(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def times(where: str) -> Mask:
    """Of durations and what is computed from them."""
    return Mask(where=where, shown="<time>", fits=_is_number, why="how long it takes depends on the machine")


def sentences(where: str) -> Mask:
    """Of what is said to people."""
    return Mask(where=where, shown="<text>", fits=_is_text, why="people read it: it may be said better")


def machines(where: str) -> Mask:
    """Of names."""
    return Mask(where=where, shown="<machine>", fits=_is_text, why="it names this machine or what is installed on it")


def machine_numbers(where: str) -> Mask:
    """Of numbers."""
    return Mask(where=where, shown="<number>", fits=_is_number, why="it counts what this machine has or takes")


def machine_facts(where: str, *kinds: type) -> Mask:
    """Of what is of one kind on one machine and of another on the next, as null is where there is nothing."""
    return Mask(
        where=where,
        shown=f"<{' or '.join(kind.__name__ for kind in kinds)}>",
        fits=lambda value: type(value) in kinds,
        why="it depends on the processor and on what is installed",
    )


def digests(where: str) -> Mask:
    """Of files that are not the same to the byte with other versions of transformers, or on other processors."""
    return Mask(
        where=where,
        shown="<sha256>",
        fits=_matches("[0-9a-f]{64}"),
        why="it is of files that libraries write, or of weights that were trained",
    )


def sizes(where: str) -> Mask:
    """Of the same files."""
    return Mask(where=where, shown="<bytes>", fits=_is_count, why="it is of files that libraries write")


def moments(where: str) -> Mask:
    """Of points in time."""
    return Mask(
        where=where,
        shown="<moment>",
        fits=_matches(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"),
        why="it is when the test ran",
    )


def nonces(where: str) -> Mask:
    """Of random numbers that make an object unlike all others."""
    return Mask(where=where, shown="<nonce>", fits=_matches("[0-9a-f]{32}"), why="it is drawn anew each time")


def trained(where: str) -> Mask:
    """Of figures of a model that was trained: rounding differs among processors, and a token may with it."""
    return Mask(where=where, shown="<trained>", fits=_is_number, why="training differs in its last bits")


def whole_milliseconds(where: str) -> Mask:
    """Of headers."""
    return Mask(where=where, shown="<time>", fits=_matches("[0-9]+"), why="how long it takes depends on the machine")


def request_ids(where: str) -> Mask:
    """Of the numbers that the server gives to requests."""
    return Mask(where=where, shown="<id>", fits=_matches("[0-9a-f]{16}"), why="it is drawn at random")
