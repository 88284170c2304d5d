"""Quality of a model on task data, decoded by the engine that will serve it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nash.data import Row
from nash.metrics import METRICS
from nash.models import load_tokenizer
from nash.recipe import MetricKind
from server.engine.engine import Engine
from server.engine.sequence import EngineConfig, GenerationParameters


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics over `n` rows, by name."""

    n: int
    metrics: dict[str, float]


def evaluate(folder: Path, rows: Sequence[Row], metric: MetricKind, config: EngineConfig) -> Evaluation:
    """Decode every row's source greedily with the model in `folder` and compare with its targets.

    Sources longer than `config.max_source_tokens` are cut, as they are in training.
    """
    predictions = predict(folder, [row.source for row in rows], config)
    return Evaluation(n=len(rows), metrics=METRICS[metric](predictions, [row.targets for row in rows]))


def predict(folder: Path, sources: Sequence[str], config: EngineConfig) -> list[str]:
    """The model's greedy answers to the source texts, in their order."""
    tokenizer = load_tokenizer(folder)
    encoded = tokenizer(list(sources), truncation=True, max_length=config.max_source_tokens).input_ids
    engine = Engine.load(folder, config)
    generated = engine.generate(encoded, GenerationParameters(max_new_tokens=engine.default_max_new_tokens))
    return [tokenizer.decode(sequence.tokens, skip_special_tokens=True) for sequence in generated]
