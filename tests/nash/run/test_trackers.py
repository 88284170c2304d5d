"""Programs that follow a training: what they are told, what becomes of one that fails, and one that is missing."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nash.errors import NashError, RequestError
from nash.recipes.recipe import FinetuneRecipe, build_recipe
from nash.run.folder import RunFolder
from nash.run.live_log import read_log
from nash.run.trackers import IDS, Trackers, check_trackers, trackers_of
from nash.training.progress import TrainingProgress
from tests.nash.tiny_training import build_task_model, finetune_phase


def recipe(*trackers: str) -> FinetuneRecipe:
    table = {
        "model": "m",
        "data": {"train": "a", "validation": "b"},
        "training": {"max_steps": 3},
        "report_to": list(trackers),
    }
    return build_recipe(FinetuneRecipe, table, "of a test", Path())


def test_tensorboard_is_told_what_the_log_says(tmp_path: Path) -> None:
    model, console = build_task_model(tmp_path / "model", dropout=0.0), Console(file=io.StringIO())
    run = tmp_path / "run"
    for steps in (2, 3):  # the second goes on with the first
        with (
            RunFolder(run, {}, {}) as folder,
            trackers_of(recipe("tensorboard"), folder, "project", "title", console) as trackers,
        ):
            watcher = TrainingProgress("training", console, trackers=trackers)
            finetune_phase(model, run / "checkpoints", watcher, max_steps=steps, schedule="constant").run()
    shown = EventAccumulator(str(run / "tensorboard"))
    shown.Reload()
    logged = [
        (entry["step"], entry["loss"]) for entry in read_log(run / "checkpoints" / "log.jsonl") if "loss" in entry
    ]
    told = [(event.step, event.value) for event in shown.Scalars("training/loss")]
    assert [step for step, _ in told] == [1, 2, 3]
    assert told == [(step, pytest.approx(loss)) for step, loss in logged]
    assert "training/eval_loss" in shown.Tags()["scalars"]
    text = shown.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"max_steps": 3' in text


class Recording:
    """A tracker that keeps what it is told, and fails at a step."""

    def __init__(self, failing_step: int = -1) -> None:
        self.told: list[Any] = []
        self.failing_step = failing_step

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        if values.get("final/step") == self.failing_step:
            raise ConnectionError("no\nnetwork")
        self.told.append((step, values))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(values)

    def finish(self) -> None:
        self.told.append("finished")


def test_a_tracker_that_fails_is_left_and_the_others_go_on() -> None:
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    failing, lasting = Recording(failing_step=2), Recording()
    trackers = Trackers({"wandb": failing, "mlflow": lasting}, console)
    trackers.describe({"training": {"max_steps": 3, "optimizer": "muon"}, "report_to": ["wandb"]})
    for step in (1, 2, 3):
        trackers.log("final", {"step": step, "loss": 0.5})
    trackers.finish()
    config = {"training.max_steps": 3, "training.optimizer": "muon", "report_to": "['wandb']"}
    assert failing.told == [config, (None, {"final/step": 1, "final/loss": 0.5})]
    assert [each[0] for each in lasting.told[1:4]] == [1, 2, 3]
    assert lasting.told[-1] == "finished"
    assert printed.getvalue() == "wandb is no longer reported to: ConnectionError: no network\n"


def test_mlflow_goes_on_with_the_run_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, str | None]] = []

    class MLflow(Recording):
        def __init__(self, experiment_name: str, run_id: str | None, run_name: str) -> None:
            super().__init__()
            begun.append((experiment_name, run_id))

        def start(self) -> None:
            self.tracker = type("Run", (), {"info": type("Info", (), {"run_id": "1f"})})

    monkeypatch.setattr("accelerate.tracking.MLflowTracker", MLflow)
    for done in (False, False, True):  # of a run that is done there is nothing to say
        with (
            RunFolder(tmp_path, {}, {}) as run,
            trackers_of(recipe("mlflow"), run, "project", "title", Console(quiet=True), done=done),
        ):
            pass
    assert begun == [("project", None), ("project", "1f")]
    assert json.loads((tmp_path / IDS).read_text()) == {"mlflow": "1f"}


def test_a_tracker_that_does_not_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("api_key not configured")

    monkeypatch.setattr("accelerate.tracking.WandBTracker", broken)
    with (
        pytest.raises(NashError, match=r"wandb does not start \(ValueError: api_key not configured\): set it up, or"),
        RunFolder(tmp_path, {}, {}) as run,
        trackers_of(recipe("wandb"), run, "project", "title", Console(quiet=True)),
    ):
        pass


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(["tensorboard"])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RequestError, match=r"names mlflow, which is not installed: run pip install 'nash\[mlflow\]'"):
        check_trackers(["mlflow"])
