"""Task metrics from well-kept libraries, one function for each kind of task."""

from collections.abc import Callable, Sequence

import jiwer

from nash.recipe import MetricKind

Predictions = Sequence[str]
References = Sequence[Sequence[str]]  # for each prediction every right answer


def phonemes(predictions: Predictions, references: References) -> dict[str, float]:
    """Phoneme and word error rate in percent, against the nearest of several references.

    Phoneme errors are insertions, deletions and substitutions over the phonemes of the references; a word is wrong
    unless it equals one of its references. A text is a sequence of phonemes set apart by spaces.
    """
    nearest = [_nearest(p, options) for p, options in zip(predictions, references, strict=True)]
    wrong = sum(p.split() != r.split() for p, r in zip(predictions, nearest, strict=True))
    return {
        "phoneme_error_rate": 100.0 * jiwer.wer(nearest, list(predictions)),
        "word_error_rate": 100.0 * wrong / len(nearest),
    }


def _nearest(prediction: str, options: Sequence[str]) -> str:
    if len(options) == 1:
        return options[0]
    return min(options, key=lambda option: jiwer.wer(option, prediction))


def exact(predictions: Predictions, references: References) -> dict[str, float]:
    """Share of predictions, in percent, that equal one of their references."""
    pairs = zip(predictions, references, strict=True)
    right = sum(p.strip() in {option.strip() for option in options} for p, options in pairs)
    return {"exact_match": 100.0 * right / len(predictions)}


METRICS: dict[MetricKind, Callable[[Predictions, References], dict[str, float]]] = {
    "phonemes": phonemes,
    "exact": exact,
}
