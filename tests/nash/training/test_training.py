"""Runs that are interrupted, go astray, or are simply run twice."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from nash.data.examples import Collator
from nash.errors import NashError, RequestError
from nash.pruning.student import Student
from nash.recipes.recipe import PruningRecipe
from nash.training.checkpoint import last_checkpoint
from nash.training.losses import cross_entropy
from nash.training.objective import decoder_inputs
from nash.training.phase import Phase, Watcher
from tests.nash.tiny_training import build_task_model, finetune_phase, student_phase

Build = Callable[..., Phase]
PRUNING = PruningRecipe(encoder_sparsity=0.4, gate_learning_rate=0.1)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With dropout: a resumed run must also go on with the same random numbers."""
    return build_task_model(tmp_path_factory.mktemp("model") / "m", dropout=0.1)


def finetuning(model_dir: Path, out: Path, watcher: Watcher | None = None, **optimization: Any) -> Phase:
    """Seven updates over two epochs of four, in two micro-batches each."""
    settings: dict[str, Any] = {
        "rows": 16,
        "batch_size": 2,
        "gradient_accumulation": 2,
        "optimizer": "muon",
        "learning_rate": 1e-2,
    }
    settings |= {"max_steps": 7, "checkpoint_steps": 2, "warmup_steps": 1} | optimization
    return finetune_phase(model_dir, out, watcher, **settings)


def pruning(model_dir: Path, out: Path, watcher: Watcher | None = None, **optimization: Any) -> Phase:
    """The same number of updates with gates, multipliers and maps."""
    settings: dict[str, Any] = {
        "rows": 14,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "max_steps": 7,
        "checkpoint_steps": 2,
    }
    return student_phase(model_dir, out, watcher, pruning=PRUNING, **(settings | optimization))


PHASES = {"finetune": finetuning, "prune": pruning}


@pytest.fixture(params=PHASES)
def build(request: pytest.FixtureRequest) -> Build:
    return PHASES[request.param]


class Interrupt(Watcher):
    """As Ctrl-C does, in the update after a step."""

    def __init__(self, after_step: int) -> None:
        self.after_step = after_step

    def before_update(self, phase: Phase) -> None:
        if phase.state.step == self.after_step:
            raise KeyboardInterrupt


def weights(phase: Phase) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in phase.objective.module.state_dict().items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]


def figures(log: list[dict[str, float]]) -> list[dict[str, float]]:
    """A log without what depends on the clock."""
    return [{k: v for k, v in e.items() if "runtime" not in k and "per_second" not in k} for e in log]


@pytest.fixture(scope="module")
def whole(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Build, Any]:
    """Each phase from beginning to end, without an interruption: its weights and its log."""
    done: dict[Build, Any] = {}
    for name, build in PHASES.items():
        phase = build(model_dir, tmp_path_factory.mktemp("whole"))
        log = phase.run()
        done[build] = (weights(phase), figures(log))
        assert phase.state.step == 7, name
        if build is pruning:
            started = student_phase(model_dir, tmp_path_factory.mktemp("started"), pruning=PRUNING)
            moved = weights(phase)
            same = [n for n, w in weights(started).items() if torch.equal(w, moved[n])]
            assert not same, "some weights, gates, maps or multipliers were not trained at all"
    return done


def test_two_runs_are_equal(build: Build, whole: Any, model_dir: Path, tmp_path: Path) -> None:
    phase = build(model_dir, tmp_path)
    log = phase.run()
    assert_equal(weights(phase), whole[build][0])
    assert figures(log) == whole[build][1]
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, 8))


@pytest.mark.parametrize("after", [3, 4])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    build: Build, whole: Any, model_dir: Path, tmp_path: Path, after: int
) -> None:
    """From the checkpoint of step 2, or from that of step 4, which is an epoch's end."""
    with pytest.raises(KeyboardInterrupt):
        build(model_dir, tmp_path, Interrupt(after)).run()
    assert last_checkpoint(tmp_path) == tmp_path / f"checkpoint-{after - after % 2}"
    torch.manual_seed(99)
    resumed = build(model_dir, tmp_path)
    log = resumed.run()
    assert_equal(weights(resumed), whole[build][0])
    assert figures(log) == whole[build][1]


def test_workers_change_nothing(whole: Any, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do they where a run goes on that began without them."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # or each worker says that it is off
    phase = finetuning(model_dir, tmp_path / "run", workers=2)
    log = phase.run()
    assert_equal(weights(phase), whole[finetuning][0])
    assert figures(log) == whole[finetuning][1]
    with pytest.raises(KeyboardInterrupt):
        finetuning(model_dir, tmp_path / "resumed", Interrupt(3)).run()
    resumed = finetuning(model_dir, tmp_path / "resumed", workers=2)
    resumed.run()
    assert_equal(weights(resumed), whole[finetuning][0])


def test_a_worker_that_is_killed(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a system that is out of memory."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr(Collator, "__call__", lambda self, examples: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(NashError, match=r"a process that makes batches ended .*: set data.workers = 0"):
        finetuning(model_dir, tmp_path, workers=1).run()


def test_a_finished_phase_takes_no_step_more(build: Build, whole: Any, model_dir: Path, tmp_path: Path) -> None:
    """As when a run was interrupted between a phase's last checkpoint and the file that the phase leaves."""
    build(model_dir, tmp_path).run()
    again = build(model_dir, tmp_path)
    log = again.run()
    assert again.state.step == 7
    assert_equal(weights(again), whole[build][0])
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, 8))


@pytest.mark.parametrize("state", [None, '{"step": 4, "log'])
def test_a_half_written_checkpoint_is_passed_over(
    whole: Any, model_dir: Path, tmp_path: Path, state: str | None
) -> None:
    with pytest.raises(KeyboardInterrupt):
        finetuning(model_dir, tmp_path, Interrupt(3)).run()
    half = tmp_path / "checkpoint-10"  # newer than 2, though not in the order of texts
    half.mkdir()
    shutil.copy(tmp_path / "checkpoint-2" / "model.safetensors", half)
    if state is not None:
        (half / "state.json").write_text(state)
    (tmp_path / "checkpoint-4.part").mkdir()  # a kill while saving
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    resumed = finetuning(model_dir, tmp_path)
    resumed.run()
    assert not list(tmp_path.glob("*.part"))
    assert_equal(weights(resumed), whole[finetuning][0])


def test_the_newest_checkpoint_is_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_no_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "absent") is None


class Poison(Watcher):
    """Makes one weight not a number after a step."""

    def __init__(self, after_step: int) -> None:
        self.after_step = after_step

    def updated(self, phase: Phase) -> None:
        if phase.state.step == self.after_step:
            phase.objective.module.get_parameter("encoder.final_layer_norm.weight").data[0] = torch.nan


@pytest.mark.parametrize(
    ("after", "says"), [(3, r"the loss is nan on a batch of 2 rows of the data .8, 13."), (6, "weights are not finite")]
)
def test_a_run_that_goes_astray_stops_and_keeps_what_was_good(
    model_dir: Path, tmp_path: Path, after: int, says: str
) -> None:
    """On the way or at the very end: nothing that is not finite is saved, nor left as the result."""
    every = 3 if after == 6 else 2
    phase = finetuning(model_dir, tmp_path, Poison(after), checkpoint_steps=every)
    with pytest.raises(NashError, match=says) as error:
        phase.run()
    assert "learning_rate" in str(error.value)
    kept = last_checkpoint(tmp_path)
    assert kept == tmp_path / f"checkpoint-{every}"
    assert all(bool(w.isfinite().all()) for w in load_file(kept / "model.safetensors").values())


def test_every_epoch_has_an_order_of_its_own(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch every pair once, in batches of like lengths."""
    seen: list[list[tuple[int, ...]]] = []
    collate = Collator.__call__

    def record(self: Collator, examples: Any) -> Any:
        seen.append([tuple(e["input_ids"]) for e in examples])
        return collate(self, examples)

    monkeypatch.setattr(Collator, "__call__", record)
    phase = finetune_phase(model_dir, tmp_path, rows=12, batch_size=4, epochs=3.0)
    phase.validation = None
    phase.run()
    epochs = [seen[i : i + 3] for i in range(0, 9, 3)]
    assert len(seen) == 9
    everything = sorted(tuple(ids) for ids in phase.pairs.sources)
    assert all(sorted(ids for batch in epoch for ids in batch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_validation_is_the_loss_of_the_model_as_it_would_be_used(model_dir: Path, tmp_path: Path) -> None:
    """No dropout, no drawn gates: a second look gives the same, whatever the random numbers."""
    phase = pruning(model_dir, tmp_path)
    first = phase.validate()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert phase.validate() == first
    assert torch.equal(torch.get_rng_state(), before), "training's random numbers are another's"
    student = phase.objective.module
    assert isinstance(student, Student)
    assert student.gates is not None
    with torch.no_grad():
        student.gates.alphas()[-1].fill_(-4.0)
    assert phase.validate() != first


def test_checkpoints_are_no_pickles_and_two_are_kept(model_dir: Path, tmp_path: Path) -> None:
    pruning(model_dir, tmp_path).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-6", "checkpoint-7", "log.jsonl"]
    files = {path.name for path in (tmp_path / "checkpoint-7").iterdir()}
    assert files == {"model.safetensors", "optimizer.safetensors", "state.json"}


def test_the_validation_loss_is_of_tokens_and_not_of_batches(build: Build, model_dir: Path, tmp_path: Path) -> None:
    found = [build(model_dir, tmp_path, batch_size=size).validate() for size in (1, 2, 3, 5)]
    assert found == pytest.approx([found[0]] * 4, rel=1e-5)
    phase = finetuning(model_dir, tmp_path)
    model = phase.objective.module.eval()
    assert isinstance(model, PreTrainedModel)
    assert phase.validation is not None
    batch = Collator(pad_id=0)([phase.validation[i] for i in range(5)])
    with torch.no_grad():
        logits = model(**decoder_inputs(model.config, batch)).logits
    assert phase.validate() == pytest.approx(float(cross_entropy(logits, batch["labels"], None)))


def test_targets_that_never_end(model_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_dir, tmp_path / "endless"))
    document = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(document | {"post_processor": None}))
    with pytest.raises(RequestError, match="ends no target with the model's end token 1"):
        finetuning(folder, tmp_path / "out")
