"""The text of a package description: its synopsis, and the paragraphs and list items of what follows.

The format is Debian Policy's (section 5.6.13): one line of synopsis; then lines that begin with one space, to be
wrapped; with more spaces, to be left as they are; or with a space and a dot, for an empty line.
"""

import re
import unicodedata

_BULLET = re.compile(r"([-*+o\u2022\u00b7]|\(?\d{1,2}[.)])\s+(?=\S)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'\u00ab(]?[A-Z\u00c0-\u00dc])")
_ABBREVIATIONS = ("e.g.", "i.e.", "etc.", "vs.", "es.", "ad es.", "ecc.", "cfr.", "cf.", "Dr.", "St.", "Mr.", "no.")


def synopsis_of(description: str) -> str:
    """The first line, without the full stop that the policy does not want there."""
    return _clean(description.split("\n", 1)[0]).removesuffix(".")


def blocks(description: str) -> list[str]:
    """The paragraphs and list items after the synopsis, each on one line; list items begin with `- `."""
    found: list[list[str]] = []
    continues = False
    for line in description.split("\n")[1:]:
        text = line.strip()
        if text in ("", "."):
            continues = False
            continue
        bullet = _BULLET.match(text)
        if bullet is not None:
            found.append(["-", text[bullet.end() :]])
        elif continues:
            found[-1].append(text)
        else:
            found.append([text])
        continues = True
    return [_clean(" ".join(lines)) for lines in found]


def is_list_item(block: str) -> bool:
    """Whether a block is an item of a list."""
    return block.startswith("- ")


def sentences(block: str) -> list[str]:
    """The sentences of a paragraph, as far as capitals after full stops tell them."""
    parts: list[str] = []
    for part in _SENTENCE_END.split(block.removeprefix("- ")):
        if parts and parts[-1].endswith(_ABBREVIATIONS):
            parts[-1] += f" {part}"
        else:
            parts.append(part)
    return parts


def plain_key(text: str) -> str:
    """Its letters alone: what two texts share that differ in numbers, case, spaces and punctuation."""
    return "".join(character for character in text.casefold() if character.isalpha())


def _clean(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
