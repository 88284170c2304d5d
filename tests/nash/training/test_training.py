"""Runs that are interrupted, go astray, or are simply run twice."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from nash.data.examples import Collator
from nash.errors import NashError, RequestError
from nash.recipes.recipe import PruningRecipe
from nash.training.losses import cross_entropy
from nash.training.phase import FinetuneTrainer, decoder_inputs, last_checkpoint, train, write_log
from tests.nash.tiny_training import build_task_model, finetune_trainer, student_trainer

Build = Callable[..., FinetuneTrainer]
PRUNING = PruningRecipe(encoder_sparsity=0.4, gate_learning_rate=0.1)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With dropout: a resumed run must also go on with the same random numbers."""
    return build_task_model(tmp_path_factory.mktemp("model") / "m", dropout=0.1)


def finetuning(model_dir: Path, out: Path, callbacks: Any = (), **optimization: Any) -> FinetuneTrainer:
    """Seven updates over two epochs of four, in two micro-batches each."""
    settings: dict[str, Any] = {
        "rows": 16,
        "batch_size": 2,
        "gradient_accumulation": 2,
        "optimizer": "muon",
        "learning_rate": 1e-2,
    }
    settings |= {"max_steps": 7, "checkpoint_steps": 2, "warmup_steps": 1} | optimization
    return finetune_trainer(model_dir, out, callbacks, **settings)


def pruning(model_dir: Path, out: Path, callbacks: Any = (), **optimization: Any) -> FinetuneTrainer:
    """The same number of updates with gates, multipliers and maps."""
    settings: dict[str, Any] = {
        "rows": 14,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "max_steps": 7,
        "checkpoint_steps": 2,
    }
    return student_trainer(model_dir, out, callbacks, pruning=PRUNING, **(settings | optimization))


PHASES = {"finetune": finetuning, "prune": pruning}


@pytest.fixture(params=PHASES)
def build(request: pytest.FixtureRequest) -> Build:
    return PHASES[request.param]


class Interrupt(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """As Ctrl-C does, at the beginning of a step."""

    def __init__(self, after_step: int) -> None:
        self.after_step = after_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.after_step:
            raise KeyboardInterrupt


def weights(trainer: FinetuneTrainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


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
        trainer = build(model_dir, tmp_path_factory.mktemp("whole"))
        log = train(trainer)
        done[build] = (weights(trainer), figures(log))
        assert trainer.state.global_step == 7, name
        if build is pruning:
            started = student_trainer(model_dir, tmp_path_factory.mktemp("started"), pruning=PRUNING)
            moved = weights(trainer)
            same = [n for n, w in weights(started).items() if torch.equal(w, moved[n])]
            assert not same, "some weights, gates, maps or multipliers were not trained at all"
    return done


def test_two_runs_are_equal(build: Build, whole: Any, model_dir: Path, tmp_path: Path) -> None:
    trainer = build(model_dir, tmp_path)
    log = train(trainer)
    assert_equal(weights(trainer), whole[build][0])
    assert figures(log) == whole[build][1]
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, 8))


@pytest.mark.parametrize("after", [3, 4])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    build: Build, whole: Any, model_dir: Path, tmp_path: Path, after: int
) -> None:
    """From the checkpoint of step 2, or from that of step 4, which is an epoch's end."""
    with pytest.raises(KeyboardInterrupt):
        train(build(model_dir, tmp_path, [Interrupt(after)]))
    assert last_checkpoint(tmp_path) == tmp_path / f"checkpoint-{after - after % 2}"
    torch.manual_seed(99)
    resumed = build(model_dir, tmp_path)
    log = train(resumed)
    assert_equal(weights(resumed), whole[build][0])
    expected = whole[build][1]
    assert [e for e in figures(log) if "loss" in e] == [e for e in expected if "loss" in e]


def test_a_finished_phase_takes_no_step_more(build: Build, whole: Any, model_dir: Path, tmp_path: Path) -> None:
    """As when a run was interrupted between a phase's last checkpoint and the file that the phase leaves."""
    train(build(model_dir, tmp_path))
    again = build(model_dir, tmp_path)
    log = train(again)
    assert again.state.global_step == 7
    assert_equal(weights(again), whole[build][0])
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, 8))


@pytest.mark.parametrize("state", [None, '{"global_step": 4, "log_hist'])
def test_a_half_written_checkpoint_is_passed_over(
    whole: Any, model_dir: Path, tmp_path: Path, state: str | None
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(finetuning(model_dir, tmp_path, [Interrupt(3)]))
    half = tmp_path / "checkpoint-10"  # newer than 2, though not in the order of texts
    half.mkdir()
    shutil.copy(tmp_path / "checkpoint-2" / "model.safetensors", half)
    if state is not None:
        (half / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    resumed = finetuning(model_dir, tmp_path)
    train(resumed)
    assert_equal(weights(resumed), whole[finetuning][0])


def test_the_newest_checkpoint_is_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_no_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "absent") is None


class Poison(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Makes one weight not a number after a step."""

    def __init__(self, after_step: int) -> None:
        self.after_step = after_step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.global_step == self.after_step:
            model.encoder.final_layer_norm.weight.data[0] = torch.nan


@pytest.mark.parametrize(
    ("after", "says"), [(3, r"the loss is nan on a batch of 2 rows of the data .8, 13."), (6, "weights are not finite")]
)
def test_a_run_that_goes_astray_stops_and_keeps_what_was_good(
    model_dir: Path, tmp_path: Path, after: int, says: str
) -> None:
    """On the way or at the very end: nothing that is not finite is saved, nor left as the result."""
    every = 3 if after == 6 else 2
    trainer = finetuning(model_dir, tmp_path, [Poison(after)], checkpoint_steps=every)
    with pytest.raises(NashError, match=says) as error:
        train(trainer)
    assert "learning_rate" in str(error.value)
    kept = last_checkpoint(tmp_path)
    assert kept == tmp_path / f"checkpoint-{every}"
    assert all(bool(w.isfinite().all()) for w in load_file(kept / "model.safetensors").values())


def test_every_epoch_has_an_order_of_its_own(model_dir: Path, tmp_path: Path) -> None:
    """As the Trainer drives the sampler: each epoch every pair once, in batches of like lengths."""
    trainer = finetune_trainer(model_dir, tmp_path, rows=12, batch_size=4, epochs=3.0)
    trainer.args.save_strategy = "no"
    collate, seen = trainer.data_collator, []

    def record(examples: Any) -> Any:
        seen.append([tuple(e["input_ids"]) for e in examples])
        return collate(examples)

    trainer.data_collator = record
    trainer.eval_dataset, trainer.args.eval_strategy = None, "no"
    train(trainer)
    epochs = [seen[i : i + 3] for i in range(0, 9, 3)]
    assert len(seen) == 9
    everything = sorted(tuple(ids) for ids in trainer.pairs.sources)
    assert all(sorted(ids for batch in epoch for ids in batch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_validation_is_the_loss_of_the_model_as_it_would_be_used(model_dir: Path, tmp_path: Path) -> None:
    """No dropout, no drawn gates: a second look gives the same, whatever the random numbers."""
    trainer = pruning(model_dir, tmp_path)
    first = trainer.evaluate()["eval_loss"]
    torch.manual_seed(5)
    assert trainer.evaluate()["eval_loss"] == first
    with torch.no_grad():
        trainer.student.gates.alphas()[-1].fill_(-4.0)
    assert trainer.evaluate()["eval_loss"] != first


def test_write_log(tmp_path: Path) -> None:
    write_log(tmp_path / "log.jsonl", [{"loss": 1.5, "step": 1}, {"loss": 1.25, "step": 2}])
    assert (tmp_path / "log.jsonl").read_text() == '{"loss": 1.5, "step": 1}\n{"loss": 1.25, "step": 2}\n'


def test_the_validation_loss_is_of_tokens_and_not_of_batches(build: Build, model_dir: Path, tmp_path: Path) -> None:
    found = [build(model_dir, tmp_path, batch_size=size).evaluate()["eval_loss"] for size in (1, 2, 3, 5)]
    assert found == pytest.approx([found[0]] * 4, rel=1e-5)
    trainer = finetuning(model_dir, tmp_path)
    trainer.model.eval()
    batch = Collator(pad_id=0)([trainer.eval_dataset[i] for i in range(5)])
    with torch.no_grad():
        logits = trainer.model(**decoder_inputs(trainer.model, batch)).logits
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(cross_entropy(logits, batch["labels"], None)))


def test_targets_that_never_end(model_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_dir, tmp_path / "endless"))
    document = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(document | {"post_processor": None}))
    with pytest.raises(RequestError, match="end token 1 behind no target"):
        finetuning(folder, tmp_path / "out")
