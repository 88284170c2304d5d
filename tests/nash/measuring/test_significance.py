"""The paired bootstrap against the metrics themselves, sacrebleu's own test and scipy's."""

import random

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.significance import PairedTest, Result
from scipy.stats import bootstrap

from nash.measuring import significance
from nash.measuring.metrics import METRICS, quality
from nash.measuring.significance import paired_difference
from nash.recipes.recipe import MetricKind

WORDS = ["a", "man", "two", "dogs", "run", "over", "the", "green", "grass", "near", "water", "in", "a", "red", "house"]


def texts(kind: MetricKind, rows: int, seed: int, wrong: float) -> tuple[list[str], list[list[str]]]:
    """Predictions of which a share of words is wrong, and references, of which some rows have two."""
    drawn, errs = random.Random(0), random.Random(seed)
    predictions, references = [], []
    for _ in range(rows):
        if kind == "correlation":
            value = drawn.uniform(0, 5)
            predictions.append(f"{value + errs.gauss(0, wrong):.3f}")
            references.append([f"{value:.3f}"])
            continue
        right = drawn.choices(WORDS, k=1 if kind == "classification" else drawn.randint(4, 12))
        references.append([" ".join(right)] + ([" ".join(reversed(right))] if drawn.random() < 0.3 else []))
        predictions.append(" ".join(errs.choice(WORDS) if errs.random() < wrong else word for word in right))
    return predictions, references


@pytest.mark.parametrize("kind", list(METRICS))
def test_the_difference_is_that_of_the_metrics(kind: MetricKind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 100)
    good, references = texts(kind, 60, seed=1, wrong=0.1)
    other_good, _ = texts(kind, 60, seed=2, wrong=0.1)
    bad, _ = texts(kind, 60, seed=3, wrong=0.7)
    of = [quality(kind, METRICS[kind](each, references)) for each in (good, other_good, bad)]
    found = paired_difference(kind, [good, other_good], [bad], references)
    assert found.value == pytest.approx((of[0] + of[1]) / 2 - of[2], abs=1e-9)
    assert 0 < found.interval[0] < found.value < found.interval[1]
    turned = paired_difference(kind, [bad], [good, other_good], references)
    assert turned.value == pytest.approx(-found.value)
    assert turned.interval == pytest.approx((-found.interval[1], -found.interval[0]))


def test_equal_answers_do_not_differ() -> None:
    answers, references = texts("translation", 20, seed=1, wrong=0.3)
    found = paired_difference("translation", [answers], [answers], references)
    assert (found.value, found.interval) == (0.0, (0.0, 0.0))
    assert str(found) == "+0.00 (+0.00 to +0.00)"


def test_the_interval_is_scipys() -> None:
    good, references = texts("exact", 400, seed=1, wrong=0.05)
    bad, _ = texts("exact", 400, seed=2, wrong=0.1)
    right = [[100.0 * (p in r) for p, r in zip(side, references, strict=True)] for side in (good, bad)]
    oracle = bootstrap(
        np.array(right),
        lambda mine, theirs, axis: np.mean(mine, axis=axis) - np.mean(theirs, axis=axis),
        paired=True,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = paired_difference("exact", [good], [bad], references)
    assert found.interval == pytest.approx((oracle.low, oracle.high), abs=1.0)  # both draw at random


def test_bleu_against_sacrebleus_paired_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both draw rows of their own, so the spread of the drawn scores agrees only roughly."""
    monkeypatch.setattr(significance, "RESAMPLES", 1000)
    good, references = texts("translation", 200, seed=1, wrong=0.2)
    bad, _ = texts("translation", 200, seed=2, wrong=0.25)
    single = [options[:1] for options in references]
    streams = [[options[0] for options in single]]
    _, oracle = PairedTest(
        [("bad", bad), ("good", good)], {"BLEU": BLEU()}, references=streams, test_type="bs", n_samples=1000
    )()
    bad_bleu, good_bleu = (result for result in oracle["BLEU"] if isinstance(result, Result))
    assert good_bleu.p_value is not None
    found = paired_difference("translation", [good], [bad], single)
    assert found.value == pytest.approx(good_bleu.score - bad_bleu.score, abs=1e-9)
    assert (found.interval[0] > 0) == (good_bleu.p_value < 0.05)
