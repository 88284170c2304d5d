"""What "auto" comes to: by records, and by what the machine runs."""

from pathlib import Path
from typing import Any

import pytest

from model_store.model.model import Model
from server.engine import dtype_choice
from server.engine.dtype_choice import choose_dtype, with_dtype
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from tests.quality_records import record

AUTO = EngineConfig(dtype="auto")
HOLDS = "its quality holds: exact match 79.90 % beside 80.00 % in float32, 100 rows of test"


def pair(dtype: str, value: float, **fields: Any) -> list[Any]:
    return [record("float32", 80.0, **fields), record(dtype, value, **fields)]


@pytest.fixture(autouse=True)
def _fast_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype_choice, "speed_order", lambda config: ("int8", "bfloat16", "float32"))


@pytest.mark.parametrize(
    ("records", "dtype", "why"),
    [
        ([], "float32", "int8: no quality is recorded; bfloat16: no quality is recorded"),
        (pair("int8", 79.9), "int8", HOLDS),
        (
            pair("int8", 70.0) + pair("bfloat16", 80.0),
            "bfloat16",
            "its quality holds: exact match 80.00 % beside 80.00 % in float32, 100 rows of test; "
            "int8: its quality does not hold: exact match 70.00 % beside 80.00 % in float32, 100 rows of test",
        ),
        (pair("bfloat16", 80.0), "bfloat16", None),
        (pair("int8", 80.0, device="cuda"), "float32", None),
        ([record("int8", 80.0)], "float32", None),  # nothing to compare with
        (pair("int4", 80.0), "float32", None),  # not on this machine
    ],
)
def test_the_fastest_whose_quality_holds(records: list[Any], dtype: str, why: str | None) -> None:
    choice = choose_dtype(AUTO, records)
    assert choice.dtype == dtype
    assert why is None or choice.why == why


def test_what_is_asked_for_needs_no_record() -> None:
    config, choice = with_dtype(EngineConfig(dtype="int8", slots=3))
    assert (config, choice.why) == (EngineConfig(dtype="int8", slots=3), "asked for")


def test_under_quantization_nothing_is_known() -> None:
    choice = choose_dtype(EngineConfig(dtype="auto", quantization="bnb-nf4"), pair("int8", 80.0))
    assert (choice.dtype, choice.why) == ("float32", "no quality is recorded under quantization 'bnb-nf4'")


def test_a_machine_with_nothing_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype_choice, "speed_order", lambda config: ("float32",))
    choice = choose_dtype(AUTO, pair("int8", 80.0))
    assert (choice.dtype, choice.why) == ("float32", "nothing faster runs on this machine")


def test_an_engine_that_knows_no_records_is_float32(t5_dir: Path) -> None:
    asked, plain = (
        Engine.load(Model.open(t5_dir), EngineConfig(dtype=dtype, slots=1)) for dtype in ("auto", "float32")
    )
    assert asked.memory_bytes() == plain.memory_bytes()
