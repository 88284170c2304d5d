"""Translate what stands between the tags of an HTML text, and leave the tags as they are."""

import html
import re
from collections.abc import Sequence

_TAG = re.compile(r"<[^<>]*>")
_OPENING = re.compile(r"<\s*([a-zA-Z0-9]+)")
_CLOSING = re.compile(r"<\s*/\s*([a-zA-Z0-9]+)")
_LEFT = frozenset({"script", "style", "code"})  # what stands in these is no text
_SPACES = re.compile(r"(\s*)(.*?)(\s*)", re.DOTALL)


class Markup:
    """One HTML text, taken apart."""

    def __init__(self, text: str) -> None:
        self._parts = _divided(text)
        self._places: list[int] = []
        self.texts: list[str] = []  # between the tags, without the spaces around them and with entities resolved
        left: str | None = None
        for i, part in enumerate(self._parts):
            if i % 2:
                if left is None and (match := _OPENING.match(part)) and match[1].lower() in _LEFT:
                    left = match[1].lower()
                elif left is not None and (match := _CLOSING.match(part)) and match[1].lower() == left:
                    left = None
            elif left is None and part.strip():
                self._places.append(i)
                self.texts.append(html.unescape(part.strip()))

    def with_texts(self, texts: Sequence[str]) -> str:
        """The whole again, with these in the places of its texts."""
        parts = list(self._parts)
        for i, text in zip(self._places, texts, strict=True):
            match = _SPACES.fullmatch(parts[i])
            assert match is not None, "every text is spaces, a middle and spaces"
            parts[i] = f"{match[1]}{html.escape(text, quote=False)}{match[3]}"
        return "".join(parts)


def _divided(text: str) -> list[str]:
    """Text, tag, text, tag, ..., text. By hand, since a comment that never ends must be looked for only once."""
    parts, begin, at, comments = [], 0, text.find("<"), True
    while at >= 0:
        stop = -1
        if comments and text.startswith("<!--", at):
            end = text.find("-->", at + 4)
            comments, stop = end >= 0, end + 3 if end >= 0 else -1
        if stop < 0 and (match := _TAG.match(text, at)) is not None:
            stop = match.end()
        if stop < 0:
            at = text.find("<", at + 1)
            continue
        parts += [text[begin:at], text[at:stop]]
        begin, at = stop, text.find("<", stop)
    return [*parts, text[begin:]]
