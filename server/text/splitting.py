"""Divide a text that is too long for a model: at the ends of sentences, or wherever as much as fits ends.

Knows no language: a sentence ends at a full stop, question or exclamation mark (those of CJK too) before white space
and something that can begin one, and at an empty line. After an initial or a common abbreviation it does not.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Possessive, and only from the first mark of a run on: each character is looked at once, whatever the text.
_END = re.compile(
    r"(?<![.!?\u2026])[.!?\u2026]++[\"'\u00bb\u201d\u2019)\]]*+(?=\s++[^\sa-z])"
    r"|[\u3002\uff01\uff1f]++[\u300d\u300f\u201d\u2019)]*+"
    r"|\n[^\S\n]*+\n"
)
_NO_END = re.compile(
    r"(?:^|[\s(])(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|No|Nr|vs|etc|e\.g|i\.e|z\.B|d\.h|bzw|ca|cf|Fig|Inc|Ltd|Jr|Sr)\.$"
)
LONGEST_WINDOW = 1 << 16  # characters; more are not looked at for one
_LONGEST_ABBREVIATION = 6  # with what stands before it and its full stop

Room = Callable[[str], int]  # how many characters of the beginning of a text fit; 0 if not even one does


@dataclass(frozen=True, kw_only=True)
class TextPiece:
    """A part of a text, from `start` to `stop`, without white space around it."""

    start: int
    stop: int
    text: str


def sentences(text: str) -> list[TextPiece]:
    """The sentences of a text; none if it is white space."""
    pieces, begin = [], 0
    for match in _END.finditer(text):
        if not _NO_END.search(text, max(begin, match.end() - _LONGEST_ABBREVIATION), match.end()):
            pieces += _piece(text, begin, match.end())
            begin = match.end()
    return pieces + _piece(text, begin, len(text))


def windows(text: str, room: Room) -> Iterator[TextPiece]:
    """Pieces as long as there is room for, cut at white space where there is any."""
    begin = 0
    while begin < len(text):
        stop = _end(text, begin, begin + max(1, room(text[begin : begin + LONGEST_WINDOW])))
        yield from _piece(text, begin, stop)
        begin = stop


def fitting(pieces: list[TextPiece], room: Room) -> Iterator[TextPiece]:
    """The pieces, with those that are too long divided into windows."""
    for piece in pieces:
        if room(piece.text) >= len(piece.text):
            yield piece
        else:
            for part in windows(piece.text, room):
                yield TextPiece(start=piece.start + part.start, stop=piece.start + part.stop, text=part.text)


def _end(text: str, begin: int, stop: int) -> int:
    """`stop`, or the last white space before it if that would cut a word."""
    if stop >= len(text) or text[stop].isspace():
        return min(stop, len(text))
    blank = max(text.rfind(" ", begin + 1, stop), text.rfind("\n", begin + 1, stop))
    return blank if blank > begin and text[begin:blank].strip() else stop


def _piece(text: str, start: int, stop: int) -> list[TextPiece]:
    part = text[start:stop]
    body = part.strip()
    if not body:
        return []
    start += len(part) - len(part.lstrip())
    return [TextPiece(start=start, stop=start + len(body), text=body)]
