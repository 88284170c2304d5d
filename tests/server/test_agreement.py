import random
import time
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.agreement import agreement, edit_distance, rouge_l

TOKENS = st.lists(st.integers(0, 3), max_size=8)


@pytest.mark.parametrize(
    ("words", "reference", "score"),
    [
        ("police killed the gunman", "police killed the gunman", 1.0),
        ("police kill the gunman", "police killed the gunman", 0.75),  # the example of Lin 2004
        ("the gunman kill police", "police killed the gunman", 0.5),
        ("a b", "c d e", 0.0),
        ("a", "", 0.0),
        ("", "", 1.0),
    ],
)
def test_rouge_l(words: str, reference: str, score: float) -> None:
    assert rouge_l(words.split(), reference.split()) == pytest.approx(score)


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("flaw", "lawn", 2)]
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance([ord(c) for c in a], [ord(c) for c in b]) == distance


@given(TOKENS, TOKENS, TOKENS)
def test_edit_distance_is_a_metric(a: list[int], b: list[int], c: list[int]) -> None:
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


@given(TOKENS, TOKENS)
def test_both_follow_from_their_definitions(a: list[int], b: list[int]) -> None:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    @cache
    def common(i: int, j: int) -> int:
        if not i or not j:
            return 0
        return max(common(i - 1, j), common(i, j - 1), common(i - 1, j - 1) + (a[i - 1] == b[j - 1]))

    assert edit_distance(a, b) == distance(len(a), len(b))
    if a or b:
        assert rouge_l(a, b) == 2 * common(len(a), len(b)) / (len(a) + len(b))


def test_long_answers_do_not_keep_the_event_loop_from_others() -> None:
    chance = random.Random(0)
    a, b = ([chance.randrange(50) for _ in range(4000)] for _ in range(2))
    begun_s = time.process_time()
    found = agreement(" ".join(map(str, a)), a, " ".join(map(str, b)), b)
    assert time.process_time() - begun_s < 1.0  # of seconds that a table of all pairs of tokens takes
    assert 2000 < found.token_edit_distance < 4000


def test_agreement_gathers_the_three() -> None:
    assert agreement("a b", [1, 2], "a c", [1, 3]) == (False, 0.5, 1)
    assert agreement("a b", [1, 2], "a b", [1, 2]) == (True, 1.0, 0)
