"""How much two generated texts agree.

Both measures are columns of a table with a row for each item of one sequence and a column for each of the other. A
column is kept in the bits of one number and made from the one before it by a few operations on all of its bits at
once: answers of thousands of tokens take milliseconds, in the process that serves everybody.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Agreement(NamedTuple):
    """A text against a reference text."""

    exact: bool
    rouge_l: float  # F-measure of the longest common subsequence, over words parted by white space; 0 to 1
    token_edit_distance: int  # fewest insertions, deletions and replacements of the vocabulary's tokens


def agreement(text: str, tokens: Sequence[Hashable], reference: str, reference_tokens: Sequence[Hashable]) -> Agreement:
    """Compare one variant's answer with the baseline's; equal tokens of the two must be equal."""
    return Agreement(
        exact=text == reference,
        rouge_l=rouge_l(text.split(), reference.split()),
        token_edit_distance=edit_distance(tokens, reference_tokens),
    )


def rouge_l(words: Sequence[Hashable], reference: Sequence[Hashable]) -> float:
    """ROUGE-L (Lin 2004) with equal weight on precision and recall; two empty texts agree wholly."""
    if not words and not reference:
        return 1.0
    return 2.0 * _longest_common_subsequence(words, reference) / (len(words) + len(reference))


def _longest_common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Its length (Hyyro 2004): a bit is zero where the column grows."""
    places, every = _places(a), (1 << len(a)) - 1
    level = every
    for item in b:
        matched = level & places.get(item, 0)
        level = ((level + matched) | (level - matched)) & every
    return len(a) - level.bit_count()


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The Levenshtein distance of two sequences (Hyyro 2003, after Myers 1999).

    `up` and `down` have a one where the column, read downwards, rises or falls by one; `right_up` and `right_down`
    where the next column is one above or below it.
    """
    if not a:
        return len(b)
    places, every, last = _places(a), (1 << len(a)) - 1, len(a) - 1
    up, down, distance = every, 0, len(a)
    for item in b:
        equal = places.get(item, 0)
        diagonal = (((equal & up) + up) ^ up) | equal | down
        right_up = down | (every & ~(diagonal | up))
        right_down = diagonal & up
        distance += (right_up >> last & 1) - (right_down >> last & 1)
        right_up = (right_up << 1 | 1) & every  # the first row counts the items of `b`
        right_down = right_down << 1 & every
        up, down = right_down | (every & ~(diagonal | right_up)), right_up & diagonal
    return distance


def _places(items: Sequence[Hashable]) -> dict[Hashable, int]:
    """By item, a number with a one at each of its places."""
    places: dict[Hashable, int] = {}
    for i, item in enumerate(items):
        places[item] = places.get(item, 0) | 1 << i
    return places
