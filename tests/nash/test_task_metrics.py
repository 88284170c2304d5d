"""Metrics by hand, against jiwer and against a plain edit distance."""

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nash.metrics import METRICS, exact, phonemes


def test_phonemes_by_hand() -> None:
    predictions = ["K AE T", "D AO G Z", "", "B ER D"]
    references = [["K AE T"], ["D AO G"], ["F IH SH"], ["B IH R D", "B ER D"]]
    found = phonemes(predictions, references)
    assert found == {"phoneme_error_rate": pytest.approx(100 * 4 / 12), "word_error_rate": pytest.approx(50.0)}


def test_phonemes_are_jiwers_rate() -> None:
    predictions, references = ["a b c", "d e", "x"], ["a c c", "d e f", "x"]
    found = phonemes(predictions, [[r] for r in references])
    assert found["phoneme_error_rate"] == pytest.approx(100 * jiwer.wer(references, predictions))


def edits(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


TEXT = st.lists(st.sampled_from("ab"), min_size=1, max_size=5).map(" ".join)


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_phonemes_by_a_plain_edit_distance(rows: list[tuple[str, str]]) -> None:
    found = phonemes([p for p, _ in rows], [[r] for _, r in rows])
    errors = sum(edits(r.split(), p.split()) for p, r in rows)
    assert found["phoneme_error_rate"] == pytest.approx(100 * errors / sum(len(r.split()) for _, r in rows))
    assert found["word_error_rate"] == pytest.approx(100 * sum(p != r for p, r in rows) / len(rows))


@given(rows=st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_more_references_never_make_a_word_wrong(rows: list[tuple[str, list[str]]]) -> None:
    predictions = [p for p, _ in rows]
    wrong = sum(p not in options for p, options in rows)
    found = phonemes(predictions, [options for _, options in rows])
    assert found["word_error_rate"] == pytest.approx(100 * wrong / len(rows))


def test_exact() -> None:
    assert exact(["yes", " no ", "no"], [["yes", "ja"], ["no"], ["yes"]]) == {"exact_match": pytest.approx(200 / 3)}


@pytest.mark.parametrize("kind", METRICS)
def test_perfect_and_hopeless(kind: str) -> None:
    perfect = METRICS[kind](["a b", "c"], [["a b"], ["d", "c"]])  # type: ignore[index]
    assert set(perfect.values()) <= {0.0, 100.0}
    with pytest.raises(ValueError, match="zip"):
        METRICS[kind](["a"], [["a"], ["b"]])  # type: ignore[index]
