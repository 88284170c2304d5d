"""Whether two models differ in quality: the paired bootstrap (Koehn, 2004) over the rows that both answered.

The rows are drawn again, with replacement, and the headline metric of both models is computed on the same drawn rows.
The interval says how far the difference depends on which rows the test split happens to have. It does not include how
far a model depends on its seed: give the answers of several seeds, whose scores are averaged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nash.measuring.metrics import (
    HEADLINE,
    LOWER_IS_BETTER,
    METRICS,
    Predictions,
    References,
    exact,
    phonemes,
    question_answering,
)
from nash.recipes.recipe import MetricKind

RESAMPLES = 2000
_AT_ONCE = 100  # resamples: a matrix of this many rows and one column per test row
_Scores = NDArray[np.float64]
_Counts = NDArray[np.int64]  # [R, N]: how often each of the N rows is in each of R resamples
_Scorer = Callable[[_Counts], _Scores]  # the headline metric of each resample, [R]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference in quality, in percentage points, positive if better, and the interval that holds 95 % of it."""

    value: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        """As in a table: `-0.65 (-1.10 to -0.20)`."""
        low, high = self.interval
        return f"{self.value:+.2f} ({low:+.2f} to {high:+.2f})"


def paired_difference(
    kind: MetricKind, answers: Sequence[Predictions], others: Sequence[Predictions], references: References
) -> Difference:
    """The headline quality of `answers` minus that of `others`: each has the answers of one or more seeds."""
    scorers = [[_scorer(kind, each, references) for each in side] for side in (answers, others)]
    sign = -1.0 if HEADLINE[kind] in LOWER_IS_BETTER else 1.0

    def differences(counts_RN: _Counts) -> _Scores:
        mine, theirs = (np.mean([score(counts_RN) for score in side], axis=0) for side in scorers)
        return np.asarray(sign * (mine - theirs))

    rows = len(references)
    random = np.random.default_rng(0)
    draws = (random.multinomial(rows, np.full(rows, 1 / rows), size=_AT_ONCE) for _ in range(RESAMPLES // _AT_ONCE))
    low, high = np.percentile(np.concatenate([differences(counts_RN) for counts_RN in draws]), [2.5, 97.5])
    whole = differences(np.ones((1, rows), dtype=np.int64))
    return Difference(value=float(whole[0]), interval=(float(low), float(high)))


def _scorer(kind: MetricKind, predictions: Predictions, references: References) -> _Scorer:
    if kind == "translation":
        return _bleu(predictions, references)
    if kind == "correlation":
        return _recomputed(kind, predictions, references)
    values_N = np.array(_ROWS[kind](predictions, references))
    return lambda counts_RN: np.asarray(counts_RN @ values_N / counts_RN.sum(axis=1))


def _row_by_row(
    metric: Callable[[Predictions, References], dict[str, float]], name: str
) -> Callable[[Predictions, References], list[float]]:
    """The values of a metric that is a mean over rows."""
    return lambda predictions, references: [
        metric([prediction], [options])[name] for prediction, options in zip(predictions, references, strict=True)
    ]


def _rouge(predictions: Predictions, references: References) -> list[float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [
        100.0 * scorer.score_multi(list(options), prediction)["rougeL"].fmeasure
        for prediction, options in zip(predictions, references, strict=True)
    ]


_ROWS: dict[MetricKind, Callable[[Predictions, References], list[float]]] = {
    "phonemes": _row_by_row(phonemes, "word_error_rate"),
    "exact": _row_by_row(exact, "exact_match"),
    "summarization": _rouge,
    "question_answering": _row_by_row(question_answering, "f1"),
    "classification": _row_by_row(exact, "exact_match"),  # which is what accuracy is, without scikit-learn in each row
}


def _bleu(predictions: Predictions, references: References) -> _Scorer:
    """BLEU is a function of sums over rows: of matching and of all n-grams by n, and of both lengths."""
    from sacrebleu.metrics.bleu import BLEU

    sentences = BLEU(effective_order=True)  # which changes the sentences' scores, not their counts
    found = [
        sentences.sentence_score(prediction, list(options))
        for prediction, options in zip(predictions, references, strict=True)
    ]
    sums_NK = np.array([[*row.counts, *row.totals, row.sys_len, row.ref_len] for row in found], dtype=np.int64)

    def score(counts_RN: _Counts) -> _Scores:
        sums_RK = (counts_RN @ sums_NK).tolist()
        return np.array([BLEU.compute_bleu(k[:4], k[4:8], k[8], k[9], smooth_method="exp").score for k in sums_RK])

    return score


def _recomputed(kind: MetricKind, predictions: Predictions, references: References) -> _Scorer:
    """Ranks are those among the drawn rows: such a metric is computed anew."""
    rows = range(len(references))

    def score(counts_RN: _Counts) -> _Scores:
        found = []
        for counts_N in counts_RN:
            drawn = np.repeat(rows, counts_N)
            metrics = METRICS[kind]([predictions[i] for i in drawn], [references[i] for i in drawn])
            found.append(metrics[HEADLINE[kind]])
        return np.array(found)

    return score
