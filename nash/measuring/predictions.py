"""A model's answers row by row, scored one by one, and beside another model's."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nash.data.rows import TaskRow
from nash.errors import RequestError
from nash.measuring.metrics import LOWER_IS_BETTER, METRICS
from nash.recipes.recipe import MetricKind

# The metric that says something of a single row, and the kind of task that computes it. A correlation has none.
_OF_A_ROW: dict[MetricKind, tuple[MetricKind, str]] = {
    "phonemes": ("phonemes", "phoneme_error_rate"),
    "exact": ("exact", "exact_match"),
    "summarization": ("summarization", "rougeL"),
    "translation": ("translation", "chrf"),
    "question_answering": ("question_answering", "f1"),
    "classification": ("exact", "exact_match"),
}


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A model's answer to one row. Scores are in percent, and higher is better."""

    source: str
    targets: tuple[str, ...]
    prediction: str
    score: float | None  # None if the metric says nothing of a single row
    against: str | None = None  # the other model's answer
    against_score: float | None = None

    def document(self) -> dict[str, Any]:
        """The row as one JSON object, without the other model if there is none."""
        return {key: value for key, value in asdict(self).items() if self.against is not None or "against" not in key}

    @property
    def gain(self) -> float:
        """How much better than the other model's answer it is."""
        return (self.score or 0.0) - (self.against_score or 0.0)


def scored(
    rows: Sequence[TaskRow], answers: Sequence[str], metric: MetricKind, against: Sequence[str] | None = None
) -> list[Prediction]:
    """The answers to the rows with their scores, and beside them the answers of another model."""
    others = [None] * len(rows) if against is None else against
    return [
        Prediction(
            source=row.source,
            targets=row.targets,
            prediction=answer,
            score=_score(metric, answer, row.targets),
            against=other,
            against_score=None if other is None else _score(metric, other, row.targets),
        )
        for row, answer, other in zip(rows, answers, others, strict=True)
    ]


def differing(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The rows with another answer than the other model's, those that lost most first."""
    return sorted((each for each in predictions if each.prediction != each.against), key=lambda each: each.gain)


def _score(metric: MetricKind, answer: str, targets: tuple[str, ...]) -> float | None:
    if metric not in _OF_A_ROW:
        return None
    kind, name = _OF_A_ROW[metric]
    value = METRICS[kind]([answer], [targets])[name]
    return 100.0 - value if name in LOWER_IS_BETTER else value


def check_new(path: Path) -> None:
    """Check, before any answer is computed, that predictions can be written there.

    Raises:
        RequestError: there is something already, or no folder for it.
    """
    if os.path.lexists(path):
        raise RequestError(f"{path} already exists: give --predictions a new file")
    if not path.absolute().parent.is_dir():
        raise RequestError(f"{path} cannot be written: {path.parent} is not a folder")


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write JSONL, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    lines = (json.dumps(each.document(), ensure_ascii=False) + "\n" for each in predictions)
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(path)
