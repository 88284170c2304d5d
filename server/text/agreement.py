"""How much two generated texts agree.

Both measures fill a table with a row for each item of one sequence and a column for each item of the other. The bits
of one integer hold a column, and a few operations on all bits at once turn it into the next. Answers of thousands of
tokens thus take milliseconds, which matters in the process that serves all requests.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Agreement(NamedTuple):
    """How far a text agrees with a reference text."""

    exact: bool
    rouge_l: float  # F-measure of the longest common subsequence of whitespace-separated words; 0 to 1
    token_edit_distance: int  # fewest insertions, deletions and replacements of the vocabulary's tokens


def agreement(text: str, tokens: Sequence[Hashable], reference: str, reference_tokens: Sequence[Hashable]) -> Agreement:
    """Compare one variant's answer with the baseline's; the same token must compare equal in both."""
    return Agreement(
        exact=text == reference,
        rouge_l=rouge_l(text.split(), reference.split()),
        token_edit_distance=edit_distance(tokens, reference_tokens),
    )


def rouge_l(words: Sequence[Hashable], reference: Sequence[Hashable]) -> float:
    """ROUGE-L (Lin 2004) with equal weight on precision and recall; 1.0 for two empty texts."""
    if not words and not reference:
        return 1.0
    return 2.0 * _longest_common_subsequence(words, reference) / (len(words) + len(reference))


def _longest_common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The length of the longest common subsequence (Hyyro 2004). A zero bit marks where the column grows by one."""
    places, every = _places(a), (1 << len(a)) - 1
    level = every
    for item in b:
        matched = level & places.get(item, 0)
        level = ((level + matched) | (level - matched)) & every
    return len(a) - level.bit_count()


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The Levenshtein distance of two sequences (Hyyro 2003, after Myers 1999).

    A one bit in `up` or `down` marks where the column, read downwards, rises or falls by one; in `right_up` or
    `right_down`, where the next column is one higher or lower.
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
    """For each item, an integer with a one bit at each of its positions."""
    places: dict[Hashable, int] = {}
    for i, item in enumerate(items):
        places[item] = places.get(item, 0) | 1 << i
    return places
