"""The GPU's benchmark from end to end, with tiny shapes on the CPU."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from model_store.spec import ModelSpec


def test_it_runs_to_its_end_and_every_step_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--tiny", "--repeats", "1", "--out", str(tmp_path / "gpu.json")])
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert [(row["shape"], row["batch"]) for row in result["batches"]] == [
        (shape, batch) for shape in ("flan-t5-xl", "bart-large") for batch in (2, 4)
    ]
    for row in result["batches"]:
        assert row["steps"] == row["graph_steps"] == 8
        assert 0 < row["limit_ms"] < row["total_ms"]
        assert "anchor_ms" not in row, "a CPU is compared with a GPU"
    assert [row["graphs"] for row in result["single"]] == ["on", "off"]
    assert len(result["attention"]) == 6
    assert "flan-t5-xl   batch    4" in capsys.readouterr().out


def test_the_shapes_are_the_published_ones() -> None:
    counts = {}
    for name, config in gpu.SHAPES.items():
        shapes = dict(ModelSpec.from_config(config).tensor_shapes())
        counts[name] = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert {name: round(count / 1e6) for name, count in counts.items()} == {
        "flan-t5-xl": 2784,  # of 2850; the output matrix, its own in the original, is made from the embedding
        "bart-large": 406,
        "t5-base": 223,
    }
    # 24 layers of four square matrices of self-attention, two of cross-attention, three of 2048 by 5120; the output.
    xl = ModelSpec.from_config(gpu.SHAPES["flan-t5-xl"])
    assert gpu.step_weight_bytes(xl) == 2 * (24 * (6 * 2048**2 + 3 * 2048 * 5120) + 2048 * 32128)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_it_says_what_can_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu.main([])
    assert stop.value.code == 2
    assert "no CUDA device is here: use --tiny" in capsys.readouterr().err
