"""The method's switches, each in a short run of its own."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from model_store.model.model import Model
from model_store.store import Store
from nash.checkpoints.opening import open_model
from nash.data.rows import TaskRow
from nash.errors import RequestError
from nash.measuring.evaluate import predict
from nash.modeling.folders import load_dense, load_tokenizer
from nash.pruning.prune import prune
from nash.pruning.run import PruneRun
from nash.pruning.task import prepare
from nash.recipes.recipe import PruneRecipe, build_recipe
from nash.run.folder import RunFolder
from nash.training.teacher_answers import answers_file, with_teacher_answers
from server.engine.interface.config import EngineConfig
from tests.nash.tiny_training import build_task_model, task_rows

FILE = "teacher_answers.jsonl"
BASE = {
    "name": "reverse",
    "data": {
        "train": "train.jsonl",
        "validation": "validation.jsonl",
        "max_source_tokens": 16,
        "max_target_tokens": 16,
    },
    "publish_slower": True,
    "pruning": {"encoder_sparsity": 0.4, "decoder_layers": 2},
    "prune_training": {"max_steps": 3, "batch_size": 8, "validation_rows": 0},
    "final_training": {"max_steps": 2, "batch_size": 8, "validation_rows": 0},
}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    build_task_model(folder / "dense", dropout=0.1)
    rows = [{"source": row.source, "target": list(row.targets)} for row in task_rows(50)]
    for split, chosen in {"train": rows[:40], "validation": rows[40:]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return folder


def run(task: Path, out: Path, **overrides: Any) -> dict[str, Any]:
    recipe = recipe_of(task, **overrides)
    return prune(recipe, out, Store(out.with_name("store")), Console(quiet=True)).document()


def recipe_of(task: Path, **overrides: Any) -> PruneRecipe:
    table = json.loads(json.dumps(BASE)) | {"model": str(task / "dense")}
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return build_recipe(PruneRecipe, table, "of a test", task, dotted)


def test_cofi_cuts_both_stacks(task: Path, tmp_path: Path) -> None:
    run(task, tmp_path / "out", pruning__gated_stacks="both", pruning__gate_sublayers=True, pruning__decoder_layers=3)
    spec = Model.open(tmp_path / "out" / "model").spec
    assert len(spec.decoder) == 3
    widths = [(len(x.self_heads), len(x.cross_heads), x.ffn) for x in spec.decoder]
    assert widths != [(spec.num_heads, spec.num_heads, spec.decoder_d_ff)] * 3


def test_layers_by_what_their_loss_does(task: Path, tmp_path: Path) -> None:
    """Kept in the folder, and taken from there when the run goes on."""
    out = tmp_path / "out"
    run(task, out, pruning__layer_selection="auto", pruning__encoder_sparsity=0.0)
    chosen = json.loads((out / "layers.json").read_text())
    assert [layer.origin for layer in Model.open(out / "model").spec.decoder] == chosen
    others = next(pair for pair in ([0, 1], [1, 2]) if pair != chosen)
    (out / "layers.json").write_text(json.dumps(others))
    for stage in ("compact", "model"):
        for file in (out / stage).iterdir():
            file.unlink()
        (out / stage).rmdir()
    run(task, out, pruning__layer_selection="auto", pruning__encoder_sparsity=0.0)
    assert [layer.origin for layer in Model.open(out / "model").spec.decoder] == others


def test_the_layer_that_trains_best(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(
        task,
        out,
        pruning__layer_selection="trained",
        pruning__search_steps=2,
        pruning__decoder_layers=1,
        pruning__encoder_sparsity=0.0,
    )
    losses = []
    for layer in range(3):
        *_, last = (out / f"layers-{layer}_log.jsonl").read_text().splitlines()
        losses.append(json.loads(last)["eval_loss"])
    assert len(set(losses)) == 3
    assert json.loads((out / "layers.json").read_text()) == [losses.index(min(losses))]


def test_a_corrected_teacher_is_the_one_that_answers(task: Path, tmp_path: Path) -> None:
    out, shared = tmp_path / "out", tmp_path / "shared"
    switches: dict[str, Any] = {"distillation__teacher_steps": 3, "distillation__sequence_level": True}
    recipe = recipe_of(task, **switches)
    with RunFolder(out, {}, {}) as folder:
        with open_model(str(task / "dense"), Store(tmp_path / "store")) as found:
            inputs = prepare(recipe, found)
        assert PruneRun(recipe, inputs, folder, Console(), shared=shared).answers_folder == out
    run(task, out, **switches)
    teacher, dense = Model.open(out / "teacher"), Model.open(task / "dense")
    assert teacher.spec == dense.spec
    sources = [row.source for row in task_rows(50)[:40]]
    config = EngineConfig(max_source_tokens=16, max_new_tokens=16)
    answers = [json.loads(line) for line in (out / FILE).read_text().splitlines()]
    assert answers == [[answer] for answer in predict(teacher, sources, config)]
    assert answers != [[answer] for answer in predict(dense, sources, config)]


def test_repair_changes_the_cut_matrices_alone(task: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    found = {}
    for repaired in (False, True):
        out = tmp_path / str(repaired) / "out"
        run(task, out, pruning__repair=repaired)
        found[repaired] = load_file(out / "compact" / "model.safetensors")
    assert found[False].keys() == found[True].keys()
    changed = {name for name, tensor in found[False].items() if not tensor.equal(found[True][name])}
    assert changed
    assert all(re.fullmatch(r"encoder\..*\.(o|wo)\.weight", name) for name in changed)


def test_the_teachers_own_answers(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    rows = task_rows(50)[:40]
    (out / FILE).write_text(json.dumps(["kept from before"]) + "\n" + '["torn')
    run(task, out, distillation__sequence_level=True)
    answers = [json.loads(line) for line in (out / FILE).read_text().splitlines()]
    config = EngineConfig(max_source_tokens=16, max_new_tokens=16)
    assert answers[0] == ["kept from before"]
    assert answers[1:] == [[a] for a in predict(Model.open(task / "dense"), [row.source for row in rows[1:]], config)]


def test_no_final_phase(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(task, out, final_training__epochs=0.0)
    assert not (out / "final_log.jsonl").exists()
    assert Model.open(out / "model").spec == Model.open(out / "compact").spec


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"prune_training__epochs": 0.0}, "leaves the gates untrained"),
        ({"pruning__layer_selection": "best"}, "layer_selection"),
        ({"pruning__gated_stacks": "decoder"}, "gated_stacks"),
        ({"distillation__encoder_matching": "nearest"}, "encoder_matching"),
    ],
)
def test_what_is_refused(task: Path, overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        recipe_of(task, **overrides)


def test_a_speed_is_not_asked_of_both_stacks(task: Path) -> None:
    table = json.loads(json.dumps(BASE)) | {"model": str(task / "dense"), "pruning": {"gated_stacks": "both"}}
    with pytest.raises(RequestError, match="leave gated_stacks"):
        build_recipe(PruneRecipe, table, "of a test", task, {"pruning.speedup": 2.0})


ROWS = [TaskRow(source="a", targets=("x",)), TaskRow(source="b", targets=("y z", "w"))]


@pytest.mark.parametrize(
    ("switches", "file", "expected"),
    [
        ({}, '[" "]\n["found"]\n', [("x",), ("found",)]),
        ({"keep_targets": True}, '["x"]\n["found"]\n', [("x",), ("y z", "w", "found")]),
        ({"answers": 2}, '["x", "q"]\n["", "r"]\n', [("x", "q"), ("r",)]),
        ({"least_answer_quality": 60.0}, '["q"]\n["y z"]\n', [("x",), ("y z",)]),
        (
            {"answers": 2, "least_answer_quality": 60.0, "keep_targets": True},
            '["x", "q"]\n["w", "y"]\n',
            [("x",), ("y z", "w")],
        ),
    ],
)
def test_targets_made_of_answers(
    switches: dict[str, Any], file: str, expected: list[tuple[str, ...]], task: Path, tmp_path: Path
) -> None:
    """A row keeps its targets if no answer is good enough; the metric's own figure says which is."""
    named = {f"distillation__{key}": value for key, value in switches.items()}
    recipe = recipe_of(task, distillation__sequence_level=True, metric="exact", **named)
    answers_file(tmp_path, recipe.distillation).write_text(file)
    answered = with_teacher_answers(ROWS, Model.open(task / "dense"), recipe, "cpu", tmp_path, Console(quiet=True))
    assert [row.targets for row in answered] == expected
    assert [row.source for row in answered] == ["a", "b"]


def test_several_answers_are_the_teachers_beams(task: Path, tmp_path: Path) -> None:
    """As transformers' beam search ranks them."""
    recipe = recipe_of(task, distillation__sequence_level=True, distillation__answers=3)
    teacher = Model.open(task / "dense")
    rows = task_rows(4)
    answered = with_teacher_answers(rows, teacher, recipe, "cpu", tmp_path, Console(quiet=True))
    tokenizer, model = load_tokenizer(teacher.folder), load_dense(teacher)
    for row, found in zip(rows, answered, strict=True):
        inputs = tokenizer(row.source, return_tensors="pt")
        beams = model.generate(**inputs, num_beams=3, num_return_sequences=3, max_new_tokens=16)
        expected = tokenizer.batch_decode(beams, skip_special_tokens=True)
        assert list(found.targets) == [text for text in dict.fromkeys(expected) if text.strip()]


def test_what_concerns_answers_needs_them(task: Path) -> None:
    with pytest.raises(RequestError, match="answers concern the teacher's answers: set sequence_level = true"):
        recipe_of(task, distillation__answers=2)
