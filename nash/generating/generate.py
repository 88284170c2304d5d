"""Answer rows with the engine, some hundred at a time, and write each batch before the next one begins."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model_store.model.model import Model
from nash.errors import RequestError
from nash.generating.files import ANSWER, SEQUENCES, append
from nash.measuring.evaluate import SEED
from nash.modeling.folders import load_tokenizer
from server.engine.engine import Engine
from server.engine.errors import BadParameterError, BadRequestError
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import DECLARATIONS, Kind

BATCH_ROWS = 256


def check_given(given: Mapping[str, Any]) -> None:
    """Refuse parameters that a request could not have either, before anything is loaded.

    Raises:
        RequestError: one is unknown, or its value is impossible.
    """
    for name, value in given.items():
        declared = DECLARATIONS.get(name)
        if declared is None or not declared.in_requests:
            known = ", ".join(each for each, declared in DECLARATIONS.items() if declared.in_requests)
            raise RequestError(f"--parameters: {name!r} is not known: use {known}")
        if not _fits(declared.kind, value):
            raise RequestError(f"--parameters: {name} is {value!r}: give a {declared.kind}")
        if declared.kind in ("count", "number") and (problem := declared.problem(value)) is not None:
            raise RequestError(f"--parameters: {name} {problem}")


def _fits(kind: Kind, value: object) -> bool:
    match kind:
        case "flag":
            return isinstance(value, bool)
        case "count" | "token":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case _:
            return isinstance(value, bool) or value == "never"


def generate(
    model: Model,
    rows: Sequence[Mapping[str, Any]],
    column: str,
    config: EngineConfig,
    given: Mapping[str, Any],
    output: Path,
    watch: Callable[[int], None],
) -> None:
    """Append the rows with their answers to a file. `watch` hears how many are written.

    Sources longer than `config.max_source_tokens` are cut. Drawn answers use the seed 0 unless `given` has one.

    Raises:
        RequestError: the model cannot be decoded as asked.
    """
    config = config.within(model.spec.max_positions)
    tokenizer, engine = load_tokenizer(model.folder), Engine.load(model, config)
    try:
        parameters = engine.defaults.resolve({"seed": SEED, **given})
        with output.open("ab") as file:
            for first in range(0, len(rows), BATCH_ROWS):
                batch = rows[first : first + BATCH_ROWS]
                texts = [row[column] for row in batch]
                sources = tokenizer(texts, truncation=True, max_length=config.max_source_tokens).input_ids
                answers = [
                    [tokenizer.decode(each.tokens, skip_special_tokens=True) for each in sequence.hypotheses]
                    for sequence in engine.generate(sources, parameters)
                ]
                append(file, (_answered(row, texts) for row, texts in zip(batch, answers, strict=True)))
                watch(first + len(batch))
    except BadParameterError as error:
        raise RequestError(f"--parameters: {error}") from error
    except BadRequestError as error:
        raise RequestError(str(error)) from error


def _answered(row: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    return {**row, ANSWER: texts[0]} | ({SEQUENCES: list(texts)} if len(texts) > 1 else {})
