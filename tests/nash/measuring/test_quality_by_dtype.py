"""Which dtypes are evaluated for a version's records, with made-up answers."""

import pytest
from rich.console import Console

from model_store.model.model import Model
from nash.data.rows import TaskRow
from nash.measuring import by_dtype as quality
from nash.measuring.by_dtype import quality_by_dtype, quality_record
from nash.measuring.evaluate import Evaluation
from nash.run.progress import Watch
from server.engine.interface.config import EngineConfig
from tests.quality_records import record
from tests.tiny_models import model_without_files

CONFIG = EngineConfig(max_source_tokens=64, max_new_tokens=32)
ROWS = [TaskRow(source="a", targets=("b",))] * 100


@pytest.mark.parametrize(
    ("figures", "evaluated"),
    [
        ({"int8": 20.0, "bfloat16": 20.0}, ["int8"]),
        ({"int8": 30.0, "bfloat16": 20.0}, ["int8", "bfloat16"]),
        ({"int8": 30.0, "bfloat16": 25.0}, ["int8", "bfloat16"]),
    ],
)
def test_down_to_the_first_that_holds(
    monkeypatch: pytest.MonkeyPatch, figures: dict[str, float], evaluated: list[str]
) -> None:
    """Of an error rate: less is better."""
    asked: list[str] = []

    def made_up(model: Model, rows: list[TaskRow], kind: str, config: EngineConfig, watch: Watch) -> Evaluation:
        asked.append(config.dtype)
        return Evaluation(n=len(rows), metrics={"word_error_rate": figures[config.dtype]}, answers=[])

    monkeypatch.setattr(quality, "evaluate", made_up)
    monkeypatch.setattr(quality, "speed_order", lambda config: ("int8", "bfloat16", "float32"))
    records = quality_by_dtype(
        "dense",
        model_without_files(),
        ROWS,
        "test",
        "phonemes",
        CONFIG,
        {"word_error_rate": 20.0},
        Console(quiet=True),
    )
    assert asked == evaluated
    assert [each.dtype for each in records] == ["float32", *evaluated]
    assert all(each.lower_is_better and each.metric == "word_error_rate" for each in records)


def test_what_is_recorded_is_not_evaluated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "evaluate", lambda *_: pytest.fail("it is known"))
    monkeypatch.setattr(quality, "speed_order", lambda config: ("int8", "float32"))
    records = quality_by_dtype(
        "dense",
        model_without_files(),
        ROWS,
        "test",
        "exact",
        CONFIG,
        {"exact_match": 80.0},
        Console(quiet=True),
        recorded=[record("int8", 79.0, data=quality_record({"exact_match": 80.0}, "exact", CONFIG, ROWS, "test").data)],
    )
    assert [(each.dtype, each.value) for each in records] == [("float32", 80.0), ("int8", 79.0)]


def test_another_prefix_or_other_answers_are_other_data() -> None:
    def digest(*rows: TaskRow) -> str:
        return quality_record({"exact_match": 80.0}, "exact", CONFIG, rows, "test").data

    a, b = TaskRow(source="a", targets=("b",)), TaskRow(source="c", targets=("d", "e"))
    others = [
        [b, a],
        [a],
        [a, b, b],
        [TaskRow(source="say a", targets=("b",)), b],
        [a, TaskRow(source="c", targets=("d",))],
    ]
    assert digest(a, b) == digest(a, b)
    assert len({digest(a, b), *(digest(*rows) for rows in others)}) == 1 + len(others)
