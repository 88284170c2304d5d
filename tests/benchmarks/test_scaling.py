"""The curves of time over layers and sparsity, with a small shape."""

import json
from pathlib import Path

import pytest

from benchmarks import scaling


def test_one_thing_is_cut_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shape", "g2p", "--batch", "1", "--threads", "1", "--repeats", "1"]
    scaling.main([*arguments, "--out", str(tmp_path / "scaling.json")])
    [result] = json.loads((tmp_path / "scaling.json").read_text())["results"]
    keys = ("decoder_layers", "encoder_layers", "encoder_sparsity")
    found = [tuple(row[key] for key in keys) for row in result["rows"]]
    layers = [1, 2, 3, 4]
    assert found[:9] == [(6, 6, 0.0), *((n, 6, 0.0) for n in layers), *((6, n, 0.0) for n in layers)]
    assert [row[2] for row in found[9:]] == pytest.approx([0.15, 0.3, 0.45, 0.6], abs=0.01)
    assert all(row[:2] == (6, 6) for row in found[9:])
    assert all(0 < row["encode_ms"] < row["total_ms"] for row in result["rows"])
    assert "step_ms_over_layers: " in capsys.readouterr().out


def test_a_line_is_found_again() -> None:
    rows = [{"x": x, "y": 2.0 + 3.0 * x} for x in (1, 2, 5)]
    assert scaling._line(rows, "x", "y") == pytest.approx({"slope": 3.0, "start": 2.0, "r2": 1.0})
