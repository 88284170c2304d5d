"""Quality of a model on task data, decoded by the engine that will serve it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_store.model.model import Model
from nash.data.rows import TaskRow
from nash.measuring.metrics import LOWER_IS_BETTER, METRICS
from nash.modeling.folders import load_tokenizer
from nash.recipes.recipe import MetricKind
from nash.run.progress import Watch
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig

# The metric that says something of a single row, and the kind of task that computes it. A correlation has none.
_OF_A_ROW: dict[MetricKind, tuple[MetricKind, str]] = {
    "phonemes": ("phonemes", "phoneme_error_rate"),
    "exact": ("exact", "exact_match"),
    "summarization": ("summarization", "rougeL"),
    "translation": ("translation", "chrf"),
    "question_answering": ("question_answering", "f1"),
    "classification": ("exact", "exact_match"),
}

SEED = 0  # if a model's own settings sample, its figures must still not change from run to run


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics over `n` rows, by name, and the answers to them."""

    n: int
    metrics: dict[str, float]
    answers: list[str]


def evaluate(
    model: Model,
    rows: Sequence[TaskRow],
    metric: MetricKind,
    config: EngineConfig,
    watch: Watch | None = None,
    *,
    greedy: bool = False,
) -> Evaluation:
    """Decode every row's source with the model and compare the answer with the row's targets.

    Sources longer than `config.max_source_tokens` are truncated, as in training. `watch` receives the number of decoded
    rows and of all rows. `greedy` takes the likeliest tokens whatever the model's settings say, which is faster.
    """
    predictions = predict(model, [row.source for row in rows], config, watch, greedy=greedy)
    metrics = METRICS[metric](predictions, [row.targets for row in rows])
    return Evaluation(n=len(rows), metrics=metrics, answers=predictions)


def predict(
    model: Model,
    sources: Sequence[str],
    config: EngineConfig,
    watch: Watch | None = None,
    *,
    greedy: bool = False,
) -> list[str]:
    """The model's answers to the source texts, in order, decoded as its generation_config.json says.

    The server does the same for a request without settings: the model sets beams, forced tokens, lengths and penalties.
    With `greedy`, there is one beam and nothing is drawn.
    """
    given = {"num_beams": 1, "do_sample": False} if greedy else {}
    return [best for (best,) in _decoded(model, sources, config, given | {"num_return_sequences": 1}, watch)]


def best_answers(
    model: Model, sources: Sequence[str], config: EngineConfig, count: int, watch: Watch | None = None
) -> list[list[str]]:
    """The model's `count` best answers to each source text, best first, by as many beams; one as `predict` finds it."""
    if count == 1:
        return [[answer] for answer in predict(model, sources, config, watch)]
    given = {"num_beams": count, "num_return_sequences": count, "do_sample": False}
    return _decoded(model, sources, config, given, watch)


def _decoded(
    model: Model, sources: Sequence[str], config: EngineConfig, given: dict[str, Any], watch: Watch | None
) -> list[list[str]]:
    config = config.within(model.spec.max_positions)
    tokenizer = load_tokenizer(model.folder)
    encoded = tokenizer(list(sources), truncation=True, max_length=config.max_source_tokens).input_ids
    engine = Engine.load(model, config)
    parameters = engine.defaults.resolve({"seed": SEED} | given)
    return [
        [tokenizer.decode(hypothesis.tokens, skip_special_tokens=True) for hypothesis in answer.hypotheses]
        for answer in engine.generate(encoded, parameters, watch)
    ]


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


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write JSONL, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    lines = (json.dumps(each.document(), ensure_ascii=False) + "\n" for each in predictions)
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(path)
