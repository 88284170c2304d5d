"""Several processes do what one does: two of them, over gloo, on the CPU."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model_store.store import Store
from nash import ranks
from nash.errors import RequestError
from tests.nash.tiny_training import build_task_model, finetune_phase, task_rows
from tests.nash.two_processes import STEPS, phase_of, state_of

ROOT = Path(__file__).parents[2]
LOSSES = {"loss", "task", "prediction", "encoder", "decoder", "lagrangian", "sparsity", "eval_loss", "grad_norm"}

RECIPE = """
model = "./model"
name = "reverse"
[data]
train = "rows.jsonl"
validation = "rows.jsonl"
max_source_tokens = 16
max_target_tokens = 16
[pruning]
encoder_sparsity = 0.3
decoder_layers = 1
layer_selection = "auto"
repair = true
[prune_training]
validation_rows = 0
max_steps = 2
[final_training]
validation_rows = 0
max_steps = 2
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes and one have left."""
    folder = tmp_path_factory.mktemp("ranks")
    build_task_model(folder / "model", dropout=0.0)
    rows = (json.dumps({"source": row.source, "target": row.targets[0]}) + "\n" for row in task_rows(12))
    (folder / "rows.jsonl").write_text("".join(rows))
    (folder / "prune.toml").write_text(RECIPE)
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for number in ("0", "1"):
        environment = os.environ | shared | {"RANK": number, "LOCAL_RANK": number, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.nash.two_processes", str(folder)]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
    for i, process in enumerate(processes):
        out, err = process.communicate(timeout=500)
        (folder / f"out-{i}").write_text(out)
        (folder / f"err-{i}").write_text(err)
    assert [process.returncode for process in processes] == [1, 7], (folder / "err-0").read_text()
    return folder


def assert_same_curve(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert [entry["step"] for entry in found] == [entry["step"] for entry in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in LOSSES & theirs.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4), (name, ours["step"])


def assert_same_state(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name.startswith("kept."):
            assert torch.equal(found[name], tensor), name
        else:
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-3, msg=name)


def test_two_do_what_one_does_and_one_goes_on_from_two(folder: Path, tmp_path: Path) -> None:
    alone = phase_of(folder / "model", tmp_path / "alone")
    log = alone.run()
    assert len(log) > STEPS
    assert_same_curve(json.loads((folder / "log-0.json").read_text()), log)
    states = [load_file(folder / f"state-{number}.safetensors") for number in (0, 1)]
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items()), "the processes differ"
    assert_same_state(states[0], state_of(alone))
    shutil.copytree(folder / "together/checkpoint-10", tmp_path / "resumed/checkpoint-10")
    resumed = phase_of(folder / "model", tmp_path / "resumed")
    assert_same_curve(resumed.run(), log)
    assert_same_state(state_of(resumed), state_of(alone))


def test_a_command_of_two_processes_makes_one_model_and_says_so_once(folder: Path) -> None:
    document = json.loads((folder / "out-0").read_text())
    assert (folder / "out-1").read_text() == ""
    version = Store(folder / "store").resolve("reverse@pruned")
    assert document["digest"] == version.digest
    err = (folder / "err-0").read_text()
    assert err.count("prune: training on cpu in float32") == 1
    assert "prune: training" not in (folder / "err-1").read_text()
    assert [each.name for each in (folder / "run").glob(".*.partial")] == []


def test_a_process_that_dies_ends_the_others_with_a_line(folder: Path) -> None:
    assert "nash.errors.NashError: another process of this run has ended, and" in (folder / "err-0").read_text()


def test_rows_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 3)
    shares = []
    for number in range(3):
        monkeypatch.setattr(ranks, "number", lambda number=number: number)
        shares.append(ranks.share([5, 6, 7, 8, 9]))
    assert shares == [([5, 8], 1.0), ([6, 9], 1.0), ([7], 1.0)]
    assert ranks.share([5, 6]) == ([5, 6], 1 / 3)


def test_a_batch_has_a_row_for_each_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_task_model(tmp_path / "m", dropout=0.0)
    monkeypatch.setattr(ranks, "count", lambda: 8)
    with pytest.raises(RequestError, match="batch_size 4 is shared by 8 processes: give each a row or more"):
        finetune_phase(tmp_path / "m", tmp_path / "out", batch_size=4)
