"""Validation with the task's own metric, the best weights, early stopping, and the log that grows."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nash.errors import RequestError
from nash.pruning.student import Student
from nash.recipes.recipe import DataRecipe, PruneRecipe, PruningRecipe
from nash.run.live_log import read_log
from nash.structure.masking import masked
from nash.training.checkpoint import last_checkpoint
from nash.training.phase import Phase, Watcher
from nash.training.validation import TaskScore
from tests.nash.tiny_training import build_task_model, finetune_phase, student_phase, task_rows, task_score

PRUNING = PruningRecipe(encoder_sparsity=0.4, gate_learning_rate=0.5, sparsity_warmup=0.5)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_task_model(tmp_path_factory.mktemp("model") / "m", dropout=0.1)


def phase_of(model_dir: Path, out: Path, watcher: Watcher | None = None, **optimization: Any) -> Phase:
    """Seven updates over two epochs of four, validated after each second one."""
    settings = {"batch_size": 4, "learning_rate": 1e-2, "max_steps": 7, "validation_steps": 2, "checkpoint_steps": 2}
    return finetune_phase(model_dir, out, watcher, **(settings | optimization))


def validations(log: list[dict[str, float]]) -> dict[int, float]:
    return {int(entry["step"]): entry["eval_loss"] for entry in log if "eval_loss" in entry}


def weights(phase: Phase) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in phase.objective.module.state_dict().items()}


def without_clock(log: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k} for entry in log]


class Scripted(TaskScore):
    """A metric whose values are known."""

    def __init__(self, values: list[float]) -> None:
        data = DataRecipe(train=Path(), validation=Path())
        super().__init__(rows=[], metric="exact", data=data, tokenizer=Path(), folder=Path())
        self.__dict__["values"] = iter(values)

    def metrics(self, model: object) -> dict[str, float]:
        return {"exact_match": next(self.__dict__["values"])}


def test_it_validates_every_so_many_steps_and_at_the_end(model_dir: Path, tmp_path: Path) -> None:
    log = phase_of(model_dir, tmp_path, score=task_score(model_dir, tmp_path)).run()
    assert list(validations(log)) == [2, 4, 6, 7]
    assert all({"eval_phoneme_error_rate", "eval_word_error_rate"} <= e.keys() for e in log if "eval_loss" in e)
    assert not (tmp_path / "validating").exists()


def test_the_metric_changes_nothing_in_training(model_dir: Path, tmp_path: Path) -> None:
    phases = [
        phase_of(model_dir, tmp_path / "plain"),
        phase_of(model_dir, tmp_path / "scored", score=task_score(model_dir, tmp_path), keep_best=False),
        phase_of(model_dir, tmp_path / "rare", validation_steps=7),
    ]
    for phase in phases:
        phase.run()
    plain, *others = map(weights, phases)
    assert all(torch.equal(plain[name], other[name]) for other in others for name in plain)
    gated = []
    for score in (None, task_score(model_dir, tmp_path)):
        out = tmp_path / f"gated-{score is None}"
        gated.append(student_phase(model_dir, out, pruning=PRUNING, score=score, max_steps=6, validation_steps=1))
        gated[-1].run()
    plain, scored = map(weights, gated)
    assert all(torch.equal(plain[name], scored[name]) for name in plain)


def test_the_scored_model_is_what_would_be_cut_now(model_dir: Path, tmp_path: Path) -> None:
    """It computes what the student computes under its hardened gates, at the sparsity that the step asks for."""
    phase = student_phase(model_dir, tmp_path, pruning=PRUNING, max_steps=8, batch_size=4, gradient_accumulation=1)
    phase.run()
    student = phase.objective.module.eval()
    assert isinstance(student, Student)
    assert student.gates is not None
    batch = phase.collate([phase.pairs[i] for i in range(4)])
    feed = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    feed["decoder_input_ids"] = batch["labels"].clamp(min=0)
    sizes = []
    for step, target in ((0, 0.0), (2, 0.2), (6, 0.4)):
        cut = phase.objective.finished(step, 8).eval()
        with torch.no_grad(), masked(student.model, student.sublayers, student.gates.harden(target).mask()):
            expected = student.model(**feed).logits
            torch.testing.assert_close(cut(**feed).logits, expected, rtol=1e-5, atol=1e-5)
        sizes.append(cut.num_parameters())
    assert sizes[0] > sizes[1] > sizes[2]


def test_keep_best_returns_the_best_validation(model_dir: Path, tmp_path: Path) -> None:
    """By the metric; of equal values the lower loss decides."""
    seen: dict[int, dict[str, Tensor]] = {}

    class Remember(Watcher):
        def updated(self, phase: Phase) -> None:
            seen[phase.state.step] = weights(phase)

    phase = phase_of(
        model_dir, tmp_path, Remember(), score=Scripted([10.0, 30.0, 20.0, 5.0]), keep_best=True, checkpoint_steps=3
    )
    phase.run()
    assert phase.state.best_step == 4
    assert all(torch.equal(tensor, seen[4][name]) for name, tensor in weights(phase).items())
    assert [path.name for path in tmp_path.glob("best*")] == ["best-4.safetensors"]
    again = phase_of(model_dir, tmp_path, keep_best=True)
    again.run()
    assert all(torch.equal(tensor, seen[4][name]) for name, tensor in weights(again).items())


def test_of_equal_metrics_the_lower_loss_is_better(model_dir: Path, tmp_path: Path) -> None:
    phase = phase_of(model_dir, tmp_path, score=Scripted([0.0] * 4), keep_best=True)
    losses = validations(phase.run())
    assert phase.state.best_step == min(losses, key=losses.__getitem__)


@pytest.mark.parametrize(("values", "stopped"), [([5.0, 4.0, 3.0, 9.0], 6), ([5.0, 4.0, 6.0, 3.0], 7)])
def test_early_stopping(model_dir: Path, tmp_path: Path, values: list[float], stopped: int) -> None:
    phase = phase_of(model_dir, tmp_path, score=Scripted(values), early_stopping=2)
    phase.run()
    assert phase.state.step == stopped
    assert last_checkpoint(tmp_path) == tmp_path / f"checkpoint-{stopped}"
    more = phase_of(model_dir, tmp_path, score=Scripted(values[3:]), early_stopping=3)
    more.run()
    assert more.state.step == 7, "more patience takes it up again"


def test_while_the_sparsity_rises_no_validation_counts(model_dir: Path, tmp_path: Path) -> None:
    """Or the best would be the first, of which nothing is cut."""
    settings: dict[str, Any] = {"max_steps": 8, "batch_size": 4, "validation_steps": 1, "keep_best": True}
    score = Scripted([90.0, 80.0, 70.0, 10.0, 20.0, 15.0, 12.0, 11.0])
    phase = student_phase(model_dir, tmp_path, pruning=PRUNING, score=score, **settings)
    phase.run()
    assert phase.state.best_step == 5


class Follow(Watcher):
    """Reads the file whenever something is logged, and is interrupted after a step."""

    def __init__(self, file: Path, interrupt_after: int = 0) -> None:
        self.file, self.interrupt_after, self.lengths = file, interrupt_after, list[int]()

    def logged(self, entry: dict[str, float]) -> None:
        self.lengths.append(len(read_log(self.file)))

    def before_update(self, phase: Phase) -> None:
        if phase.state.step + 1 == self.interrupt_after:
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_log_grows_and_a_resumed_one_has_no_step_twice(model_dir: Path, tmp_path: Path) -> None:
    whole = phase_of(model_dir, tmp_path / "whole", score=task_score(model_dir, tmp_path)).run()
    out = tmp_path / "out"
    follow = Follow(out / "log.jsonl", interrupt_after=3)
    with pytest.raises(KeyboardInterrupt):
        phase_of(model_dir, out, follow, score=task_score(model_dir, tmp_path)).run()
    assert follow.lengths == [1, 2, 3, 4], "each entry is in the file when it is made"
    assert last_checkpoint(out) == out / "checkpoint-3", "the update was finished and saved"
    with (out / "log.jsonl").open("a") as file:
        file.write('{"loss": 9.0, "step": 4}\n{"loss": 1')  # of work that was lost
    resumed = phase_of(model_dir, out, score=task_score(model_dir, tmp_path))
    assert without_clock(resumed.run()) == without_clock(whole)
    assert without_clock(read_log(out / "log.jsonl")) == without_clock(whole)


def test_interrupted_while_validating(model_dir: Path, tmp_path: Path) -> None:
    """What was trained is saved, and the validation is made up for."""

    class Impatient(Watcher):
        def validating(self, batch: int) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    whole = phase_of(model_dir, tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        phase_of(model_dir, tmp_path / "out", Impatient(), checkpoint_steps=100).run()
    assert last_checkpoint(tmp_path / "out") == tmp_path / "out" / "checkpoint-2"
    resumed = phase_of(model_dir, tmp_path / "out")
    assert without_clock(resumed.run()) == without_clock(whole)


def test_a_phase_that_is_extended(model_dir: Path, tmp_path: Path) -> None:
    """It goes on from its end, at the rate of a phase of the new length."""
    phase_of(model_dir, tmp_path).run()
    longer = phase_of(model_dir, tmp_path, max_steps=14)
    rates = {entry["step"]: entry["learning_rate"] for entry in longer.run() if "loss" in entry}
    assert longer.state.step == 14
    assert rates[7] == pytest.approx(1e-2 / 7)
    assert rates[8] == pytest.approx(1e-2 / 2)


def test_checkpoints_come_by_time(model_dir: Path, tmp_path: Path) -> None:
    seen: set[str] = set()

    class Look(Watcher):
        def before_update(self, phase: Phase) -> None:
            seen.update(path.name for path in tmp_path.glob("checkpoint-*"))

    phase_of(model_dir, tmp_path, Look(), checkpoint_steps=100, checkpoint_minutes=1e-9).run()
    assert seen == {f"checkpoint-{step}" for step in range(1, 7)}


def test_rows_are_spread_and_checked(tmp_path: Path) -> None:
    recipe = PruneRecipe(model="m", name="m", data=DataRecipe(train=Path(), validation=Path()), metric="correlation")
    rows = task_rows(10)
    exact = recipe.model_copy(update={"metric": "exact"})
    made = TaskScore.of(rows, exact, 3, "cpu", tmp_path, tmp_path)
    assert made is not None
    assert list(made.rows) == [rows[0], rows[3], rows[6]]
    assert TaskScore.of(rows, exact, 0, "cpu", tmp_path, tmp_path) is None
    with pytest.raises(RequestError, match="is not a number"):
        TaskScore.of(rows, recipe, 3, "cpu", tmp_path, tmp_path)


def test_a_log_without_a_file_or_with_half_a_line(tmp_path: Path) -> None:
    assert read_log(tmp_path / "none.jsonl") == []
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1}) + '\n{"st')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}]
