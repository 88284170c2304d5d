"""Training goes as it went: twenty steps against a committed file, and bit for bit against themselves."""

import json
from pathlib import Path

import pytest

from tests.nash.training.golden_curve import FILE, STEPS, curve


def test_the_curve_is_the_committed_one_and_repeats(tmp_path: Path) -> None:
    first, second = curve(tmp_path / "first"), curve(tmp_path / "second")
    assert first == second
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    assert len(golden) == len(first) == STEPS
    for found, expected in zip(first, golden, strict=True):
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-4)
    assert first[-1]["sparsity"] > 0.1, "the gates have hardly moved: the curve says nothing of them"
    assert first[-1]["task"] < first[0]["task"]
