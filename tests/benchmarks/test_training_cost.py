"""What a step of pruning costs, with a shape that costs nothing."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import training_cost
from benchmarks.shapes import NAMED

TINY = replace(NAMED["g2p"], d_model=16, num_heads=2, d_kv=8, d_ff=16, layers=2, source_tokens=4, new_tokens=3)


def test_it_runs_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = {training_cost.PLAIN: 100_000, training_cost.DISTILLED: 110_000, training_cost.PRUNED: 120_000}
    monkeypatch.setitem(NAMED, "g2p", TINY)
    monkeypatch.setattr(training_cost, "_in_own_process", lambda kind, *rest: peaks[kind])
    arguments = ["--shape", "g2p", "--decoder-layers", "1", "--batch-size", "3", "--repeats", "2"]
    training_cost.main([*arguments, "--out", str(tmp_path / "cost.json")])
    [result] = json.loads((tmp_path / "cost.json").read_text())["results"]
    assert (result["decoder_layers"], result["batch_size"], result["target_tokens"]) == (1, 3, 3)
    assert all(len(times) == 2 and min(times) > 0 for times in result["step_ms_turns"].values())
    assert result["over_plain"] > 0
    budget = result["teacher_bytes"] + 100_000
    assert result["memory_over_teacher_and_plain"] == pytest.approx(120_000 / budget)
    assert "g2p, 1 of 2" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [training_cost.PLAIN, training_cost.DISTILLED, training_cost.PRUNED])
def test_a_step_is_an_update(kind: str, tmp_path: Path) -> None:
    """The weights move, the gates too where there are any; the texts are as long as they should be."""
    options = argparse.Namespace(batch_size=3, precision="float32", device="cpu", gradient_checkpointing=False)
    stepper = training_cost.Stepper(kind, TINY, 1, options, tmp_path)
    assert stepper.batch["input_ids"].shape == (3, 4)
    assert stepper.batch["labels"].shape == (3, 3)
    assert (stepper.batch["input_ids"] > 2).all(), "every word is a token of its own"
    before = {name: p.detach().clone() for name, p in stepper.phase.objective.module.named_parameters()}
    for _ in range(2):  # the schedule of the first step may start from nothing
        assert stepper.step() > 0
    after = stepper.phase.objective.module.named_parameters()
    moved = {name.removeprefix("model.") for name, p in after if not p.equal(before[name])}
    assert "encoder.block.0.layer.0.SelfAttention.q.weight" in moved
    assert any(name.startswith("gates.") for name in moved) == (kind == training_cost.PRUNED)


def test_the_ratio_is_of_steps_side_by_side() -> None:
    assert training_cost._ratio([2.0, 40.0, 6.0], [1.0, 20.0, 2.0]) == 2.0
