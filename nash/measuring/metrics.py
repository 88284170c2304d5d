"""Task metrics from well-maintained libraries, one function for each kind of task.

Every figure is in percent: rates, scores and correlations are all scaled to 100. A row may have several correct
answers; if a library's metric supports only one, the best of them counts. Nothing here needs a network.
"""

import math
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jiwer

from nash.errors import RequestError
from nash.recipes.recipe import MetricKind

Predictions = Sequence[str]
References = Sequence[Sequence[str]]  # every correct answer of each prediction


def phonemes(predictions: Predictions, references: References) -> dict[str, float]:
    """Phoneme and word error rate, against the nearest of several references.

    Phoneme errors are insertions, deletions and substitutions over the phonemes of the references; a word is wrong
    unless it equals one of its references. A text is a sequence of phonemes separated by white space.
    """
    spaced = [_spaced(prediction) for prediction in predictions]
    nearest = [_nearest(p, [*map(_spaced, options)]) for p, options in zip(spaced, references, strict=True)]
    wrong = sum(p != r for p, r in zip(spaced, nearest, strict=True))
    return {
        "phoneme_error_rate": 100.0 * jiwer.wer(nearest, spaced),
        "word_error_rate": 100.0 * wrong / len(nearest),
    }


def _spaced(text: str) -> str:
    """The text with single blanks between phonemes: jiwer handles no other white space."""
    return " ".join(text.split())


def _nearest(prediction: str, options: Sequence[str]) -> str:
    if len(options) == 1:
        return options[0]
    return min(options, key=lambda option: jiwer.wer(option, prediction))


def exact(predictions: Predictions, references: References) -> dict[str, float]:
    """Share of predictions that equal one of their references."""
    pairs = zip(predictions, references, strict=True)
    right = sum(p.strip() in {option.strip() for option in options} for p, options in pairs)
    return {"exact_match": 100.0 * right / len(predictions)}


def summarization(predictions: Predictions, references: References) -> dict[str, float]:
    """ROUGE-1, -2, -L and -Lsum: F-measures with stemming, each against the best reference, averaged over the rows.

    Lsum takes a text's lines as its sentences. rouge-score knows only the letters a to z and digits; it ignores other
    scripts.
    """
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    scorer = RougeScorer(list(names), use_stemmer=True)
    scores = [scorer.score_multi(list(options), p) for p, options in zip(predictions, references, strict=True)]
    return {name: 100.0 * sum(score[name].fmeasure for score in scores) / len(scores) for name in names}


def translation(predictions: Predictions, references: References) -> dict[str, float]:
    """Corpus BLEU and chrF with sacrebleu's default settings, which allow several references per row."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    rows = [options for _, options in zip(predictions, references, strict=True)]
    # One stream for each reference position, with None in rows that have fewer. sacrebleu's annotations do not allow
    # None, but the empty text that they do allow would count as a reference of length 0.
    streams: Any = [[row[i] if i < len(row) else None for row in rows] for i in range(max(map(len, rows)))]
    hypotheses = list(predictions)
    return {
        "bleu": BLEU().corpus_score(hypotheses, streams).score,
        "chrf": CHRF().corpus_score(hypotheses, streams).score,
    }


def question_answering(predictions: Predictions, references: References) -> dict[str, float]:
    """Exact match and word F1 as SQuAD 1.1 defines them (Rajpurkar et al., 2016), each against the best answer.

    Case, punctuation, articles and white space are ignored.
    """
    matches, overlaps = 0.0, 0.0
    for prediction, options in zip(predictions, references, strict=True):
        words = _answer_words(prediction)
        answers = [_answer_words(option) for option in options]
        matches += words in answers
        overlaps += max(_overlap(words, answer) for answer in answers)
    return {"exact_match": 100.0 * matches / len(predictions), "f1": 100.0 * overlaps / len(predictions)}


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def _answer_words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _overlap(words: list[str], answer: list[str]) -> float:
    """F1 of two bags of words; two empty ones are equal."""
    if not words or not answer:
        return float(words == answer)
    shared = sum((Counter(words) & Counter(answer)).values())
    return 2 * shared / (len(words) + len(answer))


def classification(predictions: Predictions, references: References) -> dict[str, float]:
    """Accuracy, F1 averaged over the references' labels, and Matthews' correlation. A label is a text.

    A prediction that is not a label of any reference counts as a wrong answer.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    found = [prediction.strip() for prediction in predictions]
    wanted = []
    for label, options in zip(found, references, strict=True):
        labels = [option.strip() for option in options]
        wanted.append(label if label in labels else labels[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a single label, or labels outside the references, are expected
        return {
            "accuracy": 100.0 * float(accuracy_score(wanted, found)),
            "macro_f1": 100.0
            * float(f1_score(wanted, found, labels=sorted(set(wanted)), average="macro", zero_division=0)),
            "matthews_correlation": 100.0 * float(matthews_corrcoef(wanted, found)),
        }


def correlation(predictions: Predictions, references: References) -> dict[str, float]:
    """Pearson's and Spearman's correlation of numbers written as texts, with the nearest of several references.

    A prediction that is not a number says nothing about its row and counts as the references' mean. If either side is
    constant, the correlation is 0.

    Raises:
        RequestError: a reference is not a number.
    """
    from scipy.stats import pearsonr, spearmanr

    wanted = [[_reference_number(option) for option in options] for options in references]
    mean = sum(options[0] for options in wanted) / len(wanted)
    x, y = [], []
    for prediction, options in zip(predictions, wanted, strict=True):
        number = _number(prediction)
        x.append(mean if number is None else number)
        y.append(min(options, key=lambda option: abs(option - x[-1])))
    if min(x) == max(x) or min(y) == max(y):
        return {"pearson": 0.0, "spearman": 0.0}
    return {"pearson": 100.0 * float(pearsonr(x, y).statistic), "spearman": 100.0 * float(spearmanr(x, y).statistic)}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _reference_number(text: str) -> float:
    value = _number(text)
    if value is None:
        raise RequestError(f"target {text!r} is not a number, as metric = 'correlation' needs: choose another metric")
    return value


def check_references(metric: MetricKind, references: References) -> None:
    """Check, before hours of training, that the metric can be computed.

    Raises:
        RequestError: the metric cannot compare with a reference.
    """
    if metric == "correlation":
        for option in (option for options in references for option in options):
            _reference_number(option)


METRICS: dict[MetricKind, Callable[[Predictions, References], dict[str, float]]] = {
    "phonemes": phonemes,
    "exact": exact,
    "summarization": summarization,
    "translation": translation,
    "question_answering": question_answering,
    "classification": classification,
    "correlation": correlation,
}

# The figure that represents each kind where there is room for only one: in a comparison, on an axis.
HEADLINE: dict[MetricKind, str] = {
    "phonemes": "word_error_rate",
    "exact": "exact_match",
    "summarization": "rougeL",
    "translation": "bleu",
    "question_answering": "f1",
    "classification": "accuracy",
    "correlation": "spearman",
}

LOWER_IS_BETTER = frozenset({"phoneme_error_rate", "word_error_rate"})


def quality(kind: MetricKind, metrics: dict[str, float]) -> float:
    """The headline figure in percent, higher being better: an error rate becomes the share of correct answers."""
    name = HEADLINE[kind]
    return 100.0 - metrics[name] if name in LOWER_IS_BETTER else metrics[name]
