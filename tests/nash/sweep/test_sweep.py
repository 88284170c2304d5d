"""`nash sweep` from a recipe to the frontier, as its user sees it."""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model_store.model.model import Model
from model_store.store import Store
from nash.pruning.run import PruneRun
from nash.pruning.stages import walk as whole_walk
from nash.run import disk
from nash.sweep import latency as sweep_latency
from nash.sweep import sweep as sweeping
from nash.training import teacher_answers
from nash.training.checkpoint import last_checkpoint
from tests.nash.command_line import PROGRAM, Outcome, nash
from tests.nash.known_costs import by_sublayer, set_costs
from tests.nash.tiny_training import build_task_model, task_rows

PRUNE = """
model = "./dense"
name = "reverse"
metric = "phonemes"
[data]
train = "train.jsonl"
validation = "validation.jsonl"
test = "test.jsonl"
max_source_tokens = 16
max_target_tokens = 16
[prune_training]
validation_rows = 0
max_steps = 3
batch_size = 8
checkpoint_steps = 2
[final_training]
validation_rows = 0
max_steps = 3
batch_size = 8
checkpoint_steps = 2
"""
SWEEP = """
recipe = "prune.toml"
seeds = [0, 1]
encoder_sparsity = [0.4]
decoder_layers = [1]
publish = "frontier"
[[methods]]
name = "NASH"
[[methods]]
name = "Fine-tuning alone"
decoder_layers = [2]
encoder_sparsity = [0.0]
set.distillation.prediction_weight = 0.0
"""
IDS = [f"{name}-seed{seed}" for seed in (0, 1) for name in ("nash-d1-s0.4", "fine-tuning-alone-d2-s0")]
DIVERGING = '[[methods]]\nname = "Diverging"\nset.final_training.learning_rate = 1e30\n'


@pytest.fixture(autouse=True, scope="module")
def _few_turns() -> Iterator[None]:
    """Speed is measured with the fewest turns: these tests are not about its figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_latency, "_TURNS_S", 0.0)
        yield


@dataclass(frozen=True, kw_only=True)
class Task:
    """A folder with a dense model, data and a prune recipe; read only."""

    folder: Path

    def recipe(self, name: str, text: str) -> Path:
        path = self.folder / f"{name}.toml"
        path.write_text(text)
        return path


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("task")
    build_task_model(folder / "dense", dropout=0.1)
    rows = [{"source": row.source, "target": list(row.targets)} for row in task_rows(80)]
    for split, chosen in {"train": rows[:60], "validation": rows[60:70], "test": rows[70:]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    (folder / "prune.toml").write_text(PRUNE)
    return Task(folder=folder)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished sweep: where it is, and what it printed."""

    out: Path
    store: Path
    outcome: Outcome
    document: Any

    def again(self, recipe: Path, *flags: object) -> Outcome:
        return nash("sweep", recipe, "--out", self.out, "--store", self.store, "--json", *flags)

    def models(self) -> dict[str, str]:
        return {folder.name: Model.open(folder / "model").digest() for folder in (self.out / "points").iterdir()}


@pytest.fixture(scope="module")
def run(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    out, store = folder / "out", folder / "store"
    outcome = nash("sweep", task.recipe("sweep", SWEEP), "--out", out, "--store", store, "--json")
    return Run(out=out, store=store, outcome=outcome, document=outcome.document())


def test_the_document(run: Run) -> None:
    points = run.document["points"]
    assert [point["id"] for point in points] == IDS
    for point in points:
        assert {"decoder_layers", "encoder_sparsity", "seed", "metrics", "speedup", "method"} <= point.keys()
        dense_ms = point["speedup"] * point["total_ms"]
        assert 0.2 < dense_ms / run.document["dense"]["total_ms"] < 5
        for low, high in (point["speedup_quartiles"], point["speedup_interval"]):
            assert low <= point["speedup"] <= high
    assert [(p["decoder_layers"], p["encoder_sparsity"], p["seed"]) for p in points[1:3]] == [(2, 0.0, 0), (1, 0.4, 1)]
    assert points[0]["parameters"] < points[1]["parameters"] < run.document["dense"]["parameters"]
    assert 0.3 < points[0]["encoder_cut"] < 0.5
    assert run.document["frontier"], "nothing of the dense model's is faster than everything"
    assert run.document["failed"] == []
    assert json.loads((run.out / "sweep.json").read_text()) == run.document
    assert "Traceback" not in run.outcome.err


def test_progress_says_which_point_of_how_many(run: Run) -> None:
    lines = run.outcome.err.splitlines()
    for split in ("validation", "test"):
        assert sum(line == f"evaluating the dense model on the {split} rows: 0/10 rows" for line in lines) == 1
    assert f"point 1 of 4, {IDS[0]}" in lines
    assert any(line.startswith(f"point 4 of 4, {IDS[3]}, about ") and line.endswith(" left") for line in lines)


def test_points_are_runs_of_their_own_without_checkpoints(run: Run) -> None:
    assert {folder.name for folder in (run.out / "points").iterdir()} == set(IDS)
    folder = run.out / "points" / IDS[0]
    assert not (folder / "checkpoints").exists()
    assert json.loads((folder / "settings.json").read_text())["alias"] == IDS[0]
    assert len(set(run.models().values())) == 4, "seeds and methods make different models"


def test_the_frontier_is_published_by_name(run: Run) -> None:
    chosen = {name for shape in run.document["frontier"] for name in shape["points"]}
    refs = {point["id"]: point["ref"] for point in run.document["points"] if "ref" in point}
    assert refs == {name: f"reverse@{name}" for name in chosen}
    store = Store(run.store)
    for name, ref in refs.items():
        stored = store.resolve(ref)
        assert stored.manifest.lineage.parent == store.resolve("reverse@dense").digest
        point = next(p for p in run.document["points"] if p["id"] == name)
        assert dict(stored.manifest.metrics) == pytest.approx(point["metrics"])
    assert len(store.list()) == len(chosen) + 1


def test_run_again_nothing_is_done_twice(run: Run, task: Task) -> None:
    saved = {path: path.stat().st_mtime_ns for path in (run.out / "points").rglob("*") if path.is_file()}
    outcome = run.again(task.recipe("sweep", SWEEP))
    assert outcome.document() == run.document, "even what was measured is the first run's"
    assert "4 of 4 points are already done" in outcome.err
    kept = {path: path.stat().st_mtime_ns for path in saved if path.name != ".lock"}
    assert kept == {path: at for path, at in saved.items() if path.name != ".lock"}


def copied(run: Run, folder: Path) -> Run:
    shutil.copytree(run.out, folder / "out")
    shutil.copytree(run.store, folder / "store")
    return Run(out=folder / "out", store=folder / "store", outcome=run.outcome, document=run.document)


def test_a_sweep_can_be_given_more(run: Run, task: Task, tmp_path: Path) -> None:
    """One seed fewer, one shape more, all published: what there was keeps its figures."""
    more = SWEEP.replace("[0, 1]", "[0]").replace("decoder_layers = [1]", "decoder_layers = [1, 2]")
    own = copied(run, tmp_path)
    document = own.again(task.recipe("more", more), "--publish", "all").document()
    assert [p["id"] for p in document["points"]] == [IDS[0], "nash-d2-s0.4-seed0", IDS[1]]
    assert [p["ref"] for p in document["points"]] == [f"reverse@{p['id']}" for p in document["points"]]
    for new, old in (
        (document["points"][0], run.document["points"][0]),
        (document["points"][2], run.document["points"][1]),
    ):
        assert {**new, "ref": None} == {**old, "ref": None}


def test_speed_can_be_measured_anew(run: Run, task: Task, tmp_path: Path) -> None:
    own = copied(run, tmp_path)
    document = own.again(task.recipe("sweep", SWEEP), "--remeasure").document()
    assert own.models() == run.models()
    for new, old in zip(document["points"], run.document["points"], strict=True):
        assert new["metrics"] == old["metrics"]
        assert new["total_ms"] != old["total_ms"]


def test_a_failed_point_does_not_lose_the_others(run: Run, task: Task, tmp_path: Path) -> None:
    own = copied(run, tmp_path)
    outcome = own.again(task.recipe("diverging", SWEEP.replace("[0, 1]", "[0]") + DIVERGING))
    assert outcome.code == 1
    document = json.loads(outcome.out)
    assert [p["id"] for p in document["points"]] == IDS[:2]
    assert [f["id"] for f in document["failed"]] == ["diverging-d1-s0.4-seed0"]
    assert "diverged" in document["failed"][0]["error"]
    assert "diverged" in (own.out / "report.html").read_text(encoding="utf-8")
    error = outcome.err.splitlines()[-1]
    assert error == "error: 1 of 3 points failed and may be tried again: diverging-d1-s0.4-seed0"


def test_an_error_that_nobody_has_foreseen_is_one_points(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The points behind it are reached."""

    def walk(run: PruneRun) -> None:
        if run.recipe.seed == 0:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        whole_walk(run)

    monkeypatch.setattr(sweeping, "walk", walk)
    recipe = task.recipe("unlucky", 'recipe = "prune.toml"\nseeds = [0, 1]\n')
    outcome = nash("sweep", recipe, "--out", tmp_path / "out", "--store", tmp_path / "store", "--json")
    assert outcome.code == 1
    document = json.loads(outcome.out)
    assert [point["seed"] for point in document["points"]] == [1]
    assert [f["error"] for f in document["failed"]] == ["RuntimeError: DefaultCPUAllocator: can't allocate memory"]


def test_the_teacher_answers_once_for_all_points(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def best_answers(folder: Path, sources: list[str], *rest: Any) -> list[list[str]]:
        asked.append(len(sources))
        return [["ab"]] * len(sources)

    monkeypatch.setattr(teacher_answers, "best_answers", best_answers)
    text = 'recipe = "prune.toml"\nseeds = [0, 1]\n[[methods]]\nname = "A"\nset.distillation.sequence_level = true\n'
    outcome = nash("sweep", task.recipe("answered", text), "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert outcome.code == 0, outcome.err
    rows = len((tmp_path / "out" / "teacher_answers.jsonl").read_text().splitlines())
    assert asked == [rows]


def test_when_every_point_fails(task: Task, tmp_path: Path) -> None:
    recipe = task.recipe("failing", 'recipe = "prune.toml"\n' + DIVERGING)
    outcome = nash("sweep", recipe, "--out", tmp_path / "out", "--store", tmp_path / "store", "--json")
    assert (outcome.code, outcome.out) == (1, "")
    assert "error: every point failed, the first one with: training diverged" in outcome.err


def test_a_full_disk_ends_the_sweep(run: Run, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other point would find more room: the error is the disk's, and the remedy."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nash.training.phase.save_checkpoint", full)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
    outcome = nash(
        "sweep", task.recipe("sweep", SWEEP), "--out", tmp_path / "out", "--store", tmp_path / "store", "--json"
    )
    assert (outcome.code, outcome.out) == (1, "")
    assert "0 MB free" in outcome.err.splitlines()[-1]
    assert outcome.err.count("point 1 of 4") == 1
    assert "point 2 of 4" not in outcome.err


def test_a_table_for_people(run: Run, task: Task, tmp_path: Path) -> None:
    own = copied(run, tmp_path)
    outcome = nash("sweep", task.recipe("sweep", SWEEP), "--out", own.out, "--store", own.store, "--publish", "none")
    assert outcome.code == 0
    for text in ("dense", "NASH", "Fine-tuning alone", "speed-up", "seeds", "frontier"):
        assert text in outcome.out
    assert outcome.err.splitlines()[-1] == f"report: {own.out / 'report.html'}"


def refused(task: Task, tmp_path: Path, text: str) -> str:
    """Exit 2, one line that says what and what to do, and nothing begun."""
    out = tmp_path / "out"
    outcome = nash("sweep", task.recipe("bad", text), "--out", out, "--store", tmp_path / "store", "--json")
    assert (outcome.code, outcome.out) == (2, ""), outcome.err
    assert not out.exists()
    return outcome.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("seeds", "seed", "unknown key 'seed'"),
        ("decoder_layers = [2]", "decoder_layers = [2, 9]", "point fine-tuning-alone-d9-s0-seed0: decoder_layers 9"),
        ("= [0.4]", "= [0.4, 0.9]\nset.pruning.gate_units = false", "unknown key 'set'"),
        ("prediction_weight = 0.0", "prediction_weight = -1.0", "distillation.prediction_weight = -1.0"),
        (
            "set.distillation.prediction_weight = 0.0",
            "set.distillation = { task_weight = 0.0, prediction_weight = 0.0, encoder_hidden_weight = 0.0, "
            "decoder_hidden_weight = 0.0 }",
            "every loss has weight 0",
        ),
        ("encoder_sparsity = [0.0]", "encoder_sparsity = [0.7]\nset.pruning.gate_heads = false", "0.7 is out of reach"),
    ],
)
def test_every_point_is_checked_before_any_training(task: Task, tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in SWEEP
    assert says in refused(task, tmp_path, SWEEP.replace(old, new, 1))


def test_points_of_other_settings_are_refused_before_any_training(run: Run, task: Task, tmp_path: Path) -> None:
    own = copied(run, tmp_path)
    changed = SWEEP.replace("[0, 1]", "[0, 1, 2]").replace("prediction_weight = 0.0", "prediction_weight = 0.5")
    outcome = own.again(task.recipe("changed", changed))
    assert outcome.code == 2
    assert f"{IDS[1]} holds a run with other settings (distillation.prediction_weight differ)" in outcome.err
    assert own.models() == run.models()


def test_a_store_that_cannot_be_written_is_told_before_training(task: Task, tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    store.write_text("not a folder")
    outcome = nash("sweep", task.recipe("sweep", SWEEP), "--out", out, "--store", store)
    assert outcome.code != 0
    assert "is a file: give the folder of a store" in outcome.err
    assert not (out / "points").exists()


def test_the_models_own_folder_is_no_place_for_a_sweep(task: Task, tmp_path: Path) -> None:
    outcome = nash(
        "sweep", task.recipe("sweep", SWEEP), "--out", task.folder / "dense" / "sweep", "--store", tmp_path / "store"
    )
    assert outcome.code == 2
    assert "lies in the model's own folder" in outcome.err
    assert not (task.folder / "dense" / "sweep").exists()


def test_another_model_or_metric_wants_another_folder(run: Run, task: Task) -> None:
    (task.folder / "other.toml").write_text(PRUNE.replace("phonemes", "exact"))
    outcome = run.again(task.recipe("metric", SWEEP.replace("prune.toml", "other.toml")))
    assert outcome.code == 2
    assert "metric differ" in outcome.err


def test_what_draws_the_report_is_missed_before_any_training(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    outcome = nash("sweep", task.recipe("sweep", SWEEP), "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert outcome.code == 1
    assert "matplotlib not installed: run pip install" in outcome.err
    assert not (tmp_path / "out").exists()


def test_killed_in_a_training_it_comes_to_the_same_figures(run: Run, task: Task, tmp_path: Path) -> None:
    """kill -9 in the second point's training, which goes on from its checkpoint."""
    own = Run(out=tmp_path / "out", store=tmp_path / "store", outcome=run.outcome, document=None)
    recipe = task.recipe("sweep", SWEEP)
    arguments = ["sweep", str(recipe), "--out", str(own.out), "--store", str(own.store)]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    checkpoints = own.out / "points" / IDS[1] / "checkpoints" / "final"
    deadline_s = time.monotonic() + 300
    while last_checkpoint(checkpoints) is None and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (own.out / "sweep.json").exists()
    outcome = own.again(recipe)
    assert "1 of 4 points are already done" in outcome.err
    assert [p["metrics"] for p in outcome.document()["points"]] == [p["metrics"] for p in run.document["points"]]
    assert own.models() == run.models()


def test_ctrl_c_says_where_it_goes_on(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nash.training.phase.Phase.run", interrupted)
    outcome = nash("sweep", task.recipe("sweep", SWEEP), "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert (outcome.code, outcome.out) == (130, "")
    assert f"interrupted: the same command continues with {IDS[0]}" in outcome.err
    assert "Traceback" not in outcome.err


def test_the_test_rows_are_scored_once_all_points_are_trained(run: Run) -> None:
    lines = run.outcome.err.splitlines()
    tests = [i for i, line in enumerate(lines) if "on the test rows" in line]
    trained = [i for i, line in enumerate(lines) if line.startswith("final: ")]
    assert min(tests) > max(trained)
    for point in run.document["points"]:
        folder = run.out / "points" / point["id"]
        assert json.loads((folder / "test.json").read_text()) == point["metrics"]
        assert json.loads((folder / "validation.json").read_text()) == point["validation"]
        assert len(json.loads((folder / "test_answers.json").read_text())) == 10


def test_speeds_in_place_of_shapes_and_the_control(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_costs(monkeypatch, by_sublayer)
    text = """
recipe = "prune.toml"
control = true
[[methods]]
name = "NASH"
speedup = [1.2]
[[methods]]
name = "Search"
speedup = [1.2]
set.pruning.structure = "search"
set.pruning.search_depths = 2
set.pruning.search_steps = 1
"""
    outcome = nash("sweep", task.recipe("speeds", text), "--out", tmp_path / "out", "--store", tmp_path / "s", "--json")
    points: Any = {point["method"]: point for point in outcome.document()["points"]}
    assert list(points) == ["NASH", "Search", "dense, trained on"]
    assert points["NASH"]["shape"] == points["Search"]["shape"] == "x1.2"
    control = points["dense, trained on"]
    assert (control["decoder_layers"], control["encoder_cut"]) == (3, 0.0)
    steps = (tmp_path / "out" / "points" / control["id"] / "final_log.jsonl").read_text().splitlines()
    assert json.loads(steps[-1])["step"] == 6, "as many as both phases of the others"
    assert sorted(path.name for path in (tmp_path / "out").glob("plan-*")) == [
        "plan-gates-1.2.json",
        "plan-search-1.2.json",
    ]
