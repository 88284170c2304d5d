"""Records of quality: which comparison holds, and that the first record of a task stays."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from model_store.errors import CorruptStoreError
from model_store.store import Store
from model_store.version.quality import finding
from tests.quality_records import record


@pytest.mark.parametrize(
    ("reference", "value", "lower_is_better", "holds"),
    [
        (80.0, 79.6, False, True),
        (80.0, 79.59, False, False),
        (80.0, 99.0, False, True),
        (20.0, 20.1, True, True),
        (20.0, 20.11, True, False),
        (20.0, 3.0, True, True),
        (0.0, 0.0, True, True),
        (0.0, 0.01, True, False),
        (-20.0, -20.1, False, True),  # a correlation
        (-20.0, -20.2, False, False),
    ],
)
def test_half_a_percent_of_the_reference_in_the_metrics_direction(
    reference: float, value: float, lower_is_better: bool, holds: bool
) -> None:
    one = record("int8", value, lower_is_better=lower_is_better)
    other = record("float32", reference, lower_is_better=lower_is_better)
    assert one.holds(other) is holds
    found = finding("int8", "cpu", [other, one])
    assert found is not None
    assert found.holds is holds


def test_only_like_is_compared_with_like() -> None:
    reference = record("float32", 80.0)
    for other in (
        {"metric": "f1"},
        {"data": "e" * 64},
        {"max_source_tokens": 63},
        {"max_new_tokens": 31},
        {"device": "cuda"},
    ):
        assert finding("int8", "cpu", [reference, record("int8", 80.0, **other)]) is None
    assert finding("int8", "cpu", [reference, record("bfloat16", 80.0)]) is None
    elsewhere = {"engine": "torch", "instruction_sets": (), "code_version": "2", "split": "t", "rows": 99}
    assert finding("int8", "cpu", [reference, record("int8", 80.0, **elsewhere)]) is not None


def test_every_comparison_must_hold_and_the_worst_is_told() -> None:
    records = [record(dtype, value) for dtype, value in (("float32", 80.0), ("int8", 80.0))]
    found = finding("int8", "cpu", records)
    assert found is not None
    assert found.why == "its quality holds: exact match 80.00 % beside 80.00 % in float32, 100 rows of test"
    more = [record(dtype, value, data="e" * 64, rows=7) for dtype, value in (("float32", 50.0), ("int8", 40.0))]
    found = finding("int8", "cpu", records + more)
    assert found is not None
    assert not found.holds
    assert found.why == "its quality does not hold: exact match 40.00 % beside 50.00 % in float32, 7 rows of test"


def test_the_first_record_of_a_task_and_dtype_stays(tmp_path: Path, model_dir: Path) -> None:
    store = Store(tmp_path / "store")
    store.publish("g2p", model_dir, alias="dense")
    assert list(store.quality("g2p")) == []
    first = record("int8", 79.0)
    assert store.add_quality("g2p@dense", first)
    assert not store.add_quality("g2p:1", replace(first, value=99.0, engine="torch"))
    assert store.add_quality("g2p", replace(first, dtype="float32"))
    assert store.add_quality("g2p", replace(first, data="e" * 64))
    (folder,) = (tmp_path / "store/models/g2p/measurements").iterdir()
    (folder / ("0" * 64)).write_text('{"kind": "latency", "step_ms": 1.0}')  # what a later program may measure
    assert [(each.dtype, each.value) for each in store.quality("g2p")] == [
        ("int8", 79.0),
        ("float32", 79.0),
        ("int8", 79.0),
    ]
    assert store.quality("g2p")[0] == first


def test_a_damaged_record_is_named(tmp_path: Path, model_dir: Path) -> None:
    store = Store(tmp_path / "store")
    store.publish("g2p", model_dir)
    store.add_quality("g2p", record("int8", 79.0))
    (file,) = (tmp_path / "store/models/g2p/measurements").glob("*/*")
    document = json.loads(file.read_text())
    file.chmod(0o644)
    for text, says in (
        (json.dumps(document | {"value": "good"}), "value is 'good'"),
        (json.dumps(document | {"value": float("nan")}), "value is nan"),
        (json.dumps({k: v for k, v in document.items() if k != "rows"}), "rows is missing"),
        (json.dumps(document | {"instruction_sets": 3}), "instruction_sets is 3"),
        ("[]", "is not a record"),
        ("{", "is not JSON"),
    ):
        file.write_text(text)
        with pytest.raises(CorruptStoreError, match=says) as raised:
            store.quality("g2p")
        assert str(file) in str(raised.value)
        (problem,) = store.verify()
        assert (problem.ref, problem.file, problem.what) == ("g2p:1", "measurement", str(raised.value))
    file.write_text(json.dumps(document | {"later": 1}))
    assert len(store.quality("g2p")) == 1
