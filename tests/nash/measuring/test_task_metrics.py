"""Metrics by hand, against the libraries and against plain formulas."""

import math

import jiwer
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from nash.errors import RequestError
from nash.measuring.metrics import (
    HEADLINE,
    LOWER_IS_BETTER,
    METRICS,
    classification,
    correlation,
    exact,
    phonemes,
    quality,
    question_answering,
    summarization,
    translation,
)
from nash.recipes.recipe import MetricKind


def test_phonemes_by_hand() -> None:
    predictions = ["K AE T", "D AO G Z", "", "B ER D"]
    references = [["K AE T"], ["D AO G"], ["F IH SH"], ["B IH R D", "B ER D"]]
    found = phonemes(predictions, references)
    assert found == {"phoneme_error_rate": pytest.approx(100 * 4 / 12), "word_error_rate": pytest.approx(50.0)}


def test_any_white_space_sets_phonemes_apart() -> None:
    found = phonemes(["a\tb ", "a b"], [["a  b"], ["a\u00a0c", "a b"]])
    assert found == {"phoneme_error_rate": 0.0, "word_error_rate": 0.0}


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


# Two rows whose predictions are right, of two references the second; and two that are as wrong as can be.
RIGHT = {
    "correlation": (["1.5", "3"], [["1", "1.5"], ["3"]]),
}
WRONG = {
    "correlation": (["2", "1"], [["1"], ["2"]]),
    "classification": (["no", "yes"], [["yes"], ["no"]]),
}


@pytest.mark.parametrize("kind", METRICS)
def test_perfect_and_hopeless(kind: MetricKind) -> None:
    words = "one two three four five six"  # BLEU counts runs of four
    predictions, references = RIGHT.get(kind, ([words, "c d"], [["d", words], ["c d"]]))
    perfect = METRICS[kind](predictions, references)
    assert quality(kind, perfect) == pytest.approx(100)
    assert all(value == pytest.approx(0 if name in LOWER_IS_BETTER else 100) for name, value in perfect.items())
    hopeless = METRICS[kind](*WRONG.get(kind, (["x y", "z"], [["a b"], ["d", "c"]])))
    assert quality(kind, hopeless) == pytest.approx(-100 if kind == "correlation" else 0)


@pytest.mark.parametrize("kind", METRICS)
def test_every_kind_has_a_headline_among_its_figures(kind: MetricKind) -> None:
    figures = METRICS[kind](["1", "2"], [["1"], ["3"]])
    assert HEADLINE[kind] in figures
    assert all(isinstance(value, float) and math.isfinite(value) for value in figures.values())


@pytest.mark.parametrize("kind", METRICS)
def test_rows_without_a_prediction_are_a_defect_of_the_caller(kind: MetricKind) -> None:
    with pytest.raises(ValueError, match="zip"):
        METRICS[kind](["1"], [["1"], ["2"]])


@pytest.mark.parametrize("kind", METRICS)
def test_an_empty_answer_is_a_wrong_one(kind: MetricKind) -> None:
    figures = METRICS[kind](["", "", ""], [["1"], ["2"], ["3", "4"]])
    assert quality(kind, figures) == pytest.approx(0)


def test_rouge_by_hand() -> None:
    found = summarization(["the cats sat", "x"], [["a dog", "the cat sat down"], ["y"]])
    assert found["rouge1"] == pytest.approx(100 * (2 * 3 / 7) / 2)  # 3 of 3 and of 4 words, stemmed; the other row none
    assert found["rouge2"] == pytest.approx(100 * (2 * 2 / 5) / 2)
    assert found["rougeL"] == found["rougeLsum"] == found["rouge1"]


def test_rouge_lsum_takes_lines_for_sentences() -> None:
    found = summarization(["one two\nthree four"], [["three four\none two"]])
    assert found["rougeL"] == pytest.approx(50)
    assert found["rougeLsum"] == pytest.approx(100)


def test_translation_is_sacrebleus_and_takes_any_number_of_references() -> None:
    predictions = ["the cat sat on the mat", "a dog ran away from the house", "no"]
    references = [
        ["the cat sat on a mat", "the cat sat on the mat"],
        ["the dog ran away from a house"],
        ["it does not rain"],
    ]
    streams = [[row[0] for row in references], [row[-1] for row in references]]  # a repeated reference changes nothing
    found = translation(predictions, references)
    assert found == {
        "bleu": pytest.approx(sacrebleu.corpus_bleu(predictions, streams).score),
        "chrf": pytest.approx(sacrebleu.corpus_chrf(predictions, streams).score),
    }
    assert found["bleu"] > translation(predictions, [row[:1] for row in references])["bleu"]


def test_answers_as_squad_compares_them() -> None:
    assert question_answering(["The Cat!"], [["a cat", "dog"]]) == {"exact_match": 100.0, "f1": 100.0}
    assert question_answering(["big black cat"], [["dog", "the cat"]]) == {"exact_match": 0.0, "f1": pytest.approx(50)}
    assert question_answering(["the"], [["a"]]) == {"exact_match": 100.0, "f1": 100.0}


def test_classification_by_hand() -> None:
    found = classification(["yes", "no", "maybe", "no"], [["yes"], ["no"], ["yes"], ["no", "yes"]])
    assert found["accuracy"] == pytest.approx(75)
    assert found["macro_f1"] == pytest.approx(
        100 * (2 / 3 + 1) / 2
    )  # yes: 1 of 1 and of 2; no: 2 of 2; maybe is no class
    assert 50 < found["matthews_correlation"] < 100


@given(rows=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=9))
def test_matthews_correlation_by_its_formula(rows: list[tuple[bool, bool]]) -> None:
    found = classification([str(p) for p, _ in rows], [[str(r)] for _, r in rows])
    counts = [[sum((p, r) == (a, b) for p, r in rows) for b in (True, False)] for a in (True, False)]
    (tp, fp), (fn, tn) = counts
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert found["matthews_correlation"] == pytest.approx(100 * (tp * tn - fp * fn) / root if root else 0.0, abs=1e-9)


def test_correlation() -> None:
    found = correlation(["1", "2", "4"], [["1"], ["3"], ["4"]])
    assert found["spearman"] == pytest.approx(100)
    x, y = [1 - 7 / 3, 2 - 7 / 3, 4 - 7 / 3], [1 - 8 / 3, 3 - 8 / 3, 4 - 8 / 3]
    by_hand = sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    assert found["pearson"] == pytest.approx(100 * by_hand)


def test_what_is_no_number_says_nothing() -> None:
    assert correlation(["good", "nan", "inf"], [["1"], ["3"], ["5"]]) == {"pearson": 0.0, "spearman": 0.0}
    named = correlation(["1", "good", "5"], [["1"], ["3"], ["5"]])
    assert named["pearson"] == pytest.approx(100), "the mean, 3, stands in for it"
    with pytest.raises(RequestError, match=r"'high' is not a number.*choose another metric"):
        correlation(["1", "2"], [["1"], ["high"]])
