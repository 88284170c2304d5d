"""Quality of a model on task data, decoded by the engine that will serve it."""

from collections.abc import Sequence
from dataclasses import dataclass

from model_store.model.model import Model
from nash.data.rows import TaskRow
from nash.measuring.metrics import METRICS
from nash.modeling.folders import load_tokenizer
from nash.recipes.recipe import MetricKind
from nash.run.progress import Watch
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig

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
    config = config.within(model.spec.max_positions)
    tokenizer = load_tokenizer(model.folder)
    encoded = tokenizer(list(sources), truncation=True, max_length=config.max_source_tokens).input_ids
    engine = Engine.load(model, config)
    given = {"num_beams": 1, "do_sample": False} if greedy else {}
    parameters = engine.defaults.resolve({"num_return_sequences": 1, "seed": SEED} | given)
    answers = engine.generate(encoded, parameters, watch)
    return [tokenizer.decode(answer.tokens, skip_special_tokens=True) for answer in answers]
