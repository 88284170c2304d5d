"""How much two generated texts agree."""

from collections.abc import Sequence
from typing import NamedTuple


class Agreement(NamedTuple):
    """A text against a reference text."""

    exact: bool
    rouge_l: float  # F-measure of the longest common subsequence, over words parted by white space; 0 to 1
    token_edit_distance: int  # fewest insertions, deletions and replacements of the vocabulary's tokens


def agreement(text: str, tokens: Sequence[int], reference: str, reference_tokens: Sequence[int]) -> Agreement:
    """Compare one variant's answer with the baseline's."""
    return Agreement(
        exact=text == reference,
        rouge_l=rouge_l(text.split(), reference.split()),
        token_edit_distance=edit_distance(tokens, reference_tokens),
    )


def rouge_l(words: Sequence[str], reference: Sequence[str]) -> float:
    """ROUGE-L (Lin 2004) with equal weight on precision and recall; two empty texts agree wholly."""
    if not words and not reference:
        return 1.0
    return 2.0 * _longest_common_subsequence(words, reference) / (len(words) + len(reference))


def _longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if x == y else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """The Levenshtein distance of two token sequences."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal if x == y else 1 + min(diagonal, above, row[j - 1])
            diagonal = above
    return row[-1]
