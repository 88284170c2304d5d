"""The benchmark of T5-base's shape, with a small one."""

import json
from pathlib import Path

import pytest

from benchmarks import t5_base
from benchmarks.shapes import NAMED, T5_BASE
from model_store.model.config import layout_of
from model_store.model.spec import ModelSpec
from nash.measuring.figures import Latency


def test_it_runs_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shape", "g2p", "--decoder-layers", "2", "--vocabulary", "40", "--batch", "1", "--threads", "1"]
    t5_base.main([*arguments, "--repeats", "1", "--out", str(tmp_path / "t5.json")])
    document = json.loads((tmp_path / "t5.json").read_text())
    assert document["encoder_sparsity"] == pytest.approx(0.3, abs=0.01)
    assert [(result["dtype"], result["batch"]) for result in document["results"]] == [("float32", 1), ("int8", 1)]
    for result in document["results"]:
        dense, *others = result["rows"]
        assert dense["speedup"] == 1.0
        assert [row["model"] for row in others][:2] == ["pruned", "pruned, trimmed"]
        assert all(row["speedup"] == dense["total_ms"] / row["total_ms"] for row in others)
        assert all(value > 0 for value in result["bounds"].values())
    assert "int8, batch 1" in capsys.readouterr().out


def test_the_shapes_are_what_they_are_called() -> None:
    specs = t5_base.models(T5_BASE, decoder_layers=3, vocabulary=8000)
    assert parameters(specs["dense"]) == 222_903_552  # T5-base as it is published
    assert len(specs["pruned"].decoder) == 3
    assert specs["pruned"].encoder_sparsity == pytest.approx(0.3, abs=0.001)
    assert specs["pruned, trimmed"].vocab_size == 8000
    [nothing] = specs["no decoder layer"].decoder
    assert (nothing.self_heads, nothing.cross_heads, nothing.ffn) == ((), (), 0)
    assert set(NAMED) == {"g2p", "t5-small", "t5-base"}


def parameters(spec: ModelSpec) -> int:
    total = 0
    for _, shape in layout_of(spec).shapes():
        size = 1
        for axis in shape:
            size *= axis
        total += size
    return total


def test_the_logits_bound_of_three_layers_of_twelve() -> None:
    """Of 99 and 25 million weights of a step 25 and 25 are left."""
    latency = Latency(encoder_ms=1.0, step_ms=2.0, total_ms=3.0)
    names = ("dense", "pruned", "no decoder layer", "no decoder layer, trimmed")
    bounds = t5_base.bounds(T5_BASE, 3, 8000, dict.fromkeys(names, latency))
    assert bounds["step_by_weights"] == pytest.approx(2.5, abs=0.02)
    assert bounds["step_by_weights_trimmed"] == pytest.approx(4.0, abs=0.05)
    assert bounds["step_without_layers"] == 1.0
