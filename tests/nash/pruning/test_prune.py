"""`nash prune` from a recipe to the store, as its user sees it."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from model_store.model.model import INT4, Model
from model_store.store import Store
from nash.modeling.folders import load_dense
from nash.training.checkpoint import last_checkpoint
from server.engine.capabilities import engine_name, speed_order
from server.engine.dtype_choice import choose_dtype
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.machine.cpus import instruction_sets
from tests.nash.command_line import PROGRAM, Outcome, nash
from tests.nash.tiny_training import build_task_model, task_rows
from tests.tiny_models import PAD_ID

SPARSITY = 0.4
FIELDS = {"metrics", "parameters", "bytes", "encoder_ms", "step_ms", "total_ms"}
RECIPE = f"""
model = "./dense"
name = "reverse"
metric = "exact"
publish_slower = true
[data]
train = "train.jsonl"
validation = "validation.jsonl"
test = "test.jsonl"
max_source_tokens = 16
max_target_tokens = 16
[pruning]
encoder_sparsity = {SPARSITY}
decoder_layers = 2
[prune_training]
max_steps = 4
batch_size = 8
checkpoint_steps = 2
[final_training]
max_steps = 4
batch_size = 8
checkpoint_steps = 2
"""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A folder with a dense model, data and a recipe; read only."""

    folder: Path

    def recipe(self, name: str = "prune", text: str = RECIPE) -> Path:
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
    return Task(folder=folder)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: where it is, and what it printed."""

    out: Path
    store: Path
    outcome: Outcome
    document: Any

    def again(self, task: Task) -> Any:
        return nash("prune", task.recipe(), "--out", self.out, "--store", self.store, "--json").document()


@pytest.fixture(scope="module")
def run(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    out, store = folder / "out", folder / "store"
    outcome = nash("prune", task.recipe(), "--out", out, "--store", store, "--json")
    return Run(out=out, store=store, outcome=outcome, document=outcome.document())


def test_the_document(run: Run) -> None:
    document = run.document
    assert {"ref", "digest", "dense", "pruned", "speedup"} <= document.keys()
    assert document["ref"] == "reverse@pruned"
    assert document["dense"].keys() == document["pruned"].keys() == FIELDS
    assert document["pruned"]["metrics"].keys() == {"exact_match"}
    assert document["n"] == 10
    assert document["pruned"]["parameters"] < document["dense"]["parameters"]
    assert document["speedup_interval"][0] <= document["speedup"] <= document["speedup_interval"][1]
    assert "Traceback" not in run.outcome.err


def test_what_is_in_the_store(run: Run, task: Task) -> None:
    store = Store(run.store)
    dense, pruned = store.resolve("reverse@dense"), store.resolve("reverse@pruned")
    assert pruned.digest == run.document["digest"]
    manifest = pruned.manifest
    assert manifest.lineage.parent == dense.digest
    assert manifest.lineage.seed == 0
    assert manifest.lineage.data.keys() == {"train", "validation", "test"}
    assert str(task.folder) not in json.dumps(manifest.lineage.recipe), "a digest must not depend on folders"
    spec = Model.open(store.checkout("reverse@pruned")).spec
    one_gate = spec.head_weights / (3 * (3 * spec.head_weights + spec.d_ff * spec.unit_weights))
    assert spec.encoder_sparsity == pytest.approx(SPARSITY, abs=one_gate)
    assert [layer.origin for layer in spec.decoder] == [0, 2]
    assert all(len(layer.cross_heads) == 3 and layer.ffn == spec.d_ff for layer in spec.decoder)


def test_both_models_have_records_down_to_the_first_dtype_that_holds(run: Run) -> None:
    store = Store(run.store)
    config = EngineConfig(max_source_tokens=16, max_new_tokens=16)
    for side in ("dense", "pruned"):
        records = store.quality(f"reverse@{side}")
        [reference] = [record for record in records if record.dtype == "float32"]
        assert reference.value == run.document[side]["metrics"]["exact_match"]
        served = choose_dtype(EngineConfig(dtype="auto"), records).dtype
        order = speed_order(config)
        assert {record.dtype for record in records} == {*order[: order.index(served) + 1], "float32"}
        for record in records:
            assert record.data == reference.data
            assert (record.metric, record.split, record.rows) == ("exact_match", "test", 10)
            assert (record.max_source_tokens, record.max_new_tokens) == (16, 16)
            assert record.engine == engine_name(replace(config, dtype=record.dtype))
            assert record.instruction_sets == instruction_sets()
        for record in records:
            if record is not reference:
                assert f"the {side} model in {record.dtype}: its quality " in run.outcome.err


def test_the_published_model_loads_and_was_trained(run: Run) -> None:
    folder = Store(run.store).checkout("reverse@pruned")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    compact = AutoModelForSeq2SeqLM.from_pretrained(run.out / "compact")
    names = dict(model.named_parameters())
    assert names.keys() == dict(compact.named_parameters()).keys()
    assert not any(name.startswith(("gates", "maps")) for name in names)
    same = [name for name, p in compact.named_parameters() if torch.equal(p, names[name])]
    assert not same, "the final phase left these as they were"
    for phase in ("prune", "final"):
        assert (run.out / f"{phase}_log.jsonl").is_file()


def test_run_again_it_goes_on_from_what_is_there(run: Run, task: Task) -> None:
    """First from everything; then without the final model; then from the last checkpoints alone."""
    saved = {path: path.stat().st_mtime_ns for path in run.out.rglob("*") if path.is_file()}
    assert run.again(task) == run.document, "even what was measured is the first run's"
    assert {path: path.stat().st_mtime_ns for path in saved} == saved, "something was done twice"
    for lost in (["model"], ["compact", "model"]):
        for name in lost:
            shutil.rmtree(run.out / name)
        assert run.again(task)["digest"] == run.document["digest"]
    assert [stored.ref for stored in Store(run.store).list()] == ["reverse:1", "reverse:2"]


def test_a_finished_run_is_extended(run: Run, task: Task, tmp_path: Path) -> None:
    """The final phase goes on from its end; a longer pruning phase makes all that follows it again."""
    out, store = shutil.copytree(run.out, tmp_path / "run"), shutil.copytree(run.store, tmp_path / "store")

    def steps(phase: str) -> list[float]:
        lines = (out / f"{phase}_log.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines if "eval_loss" in line]

    def call(text: str) -> Outcome:
        return nash("prune", task.recipe("longer", text), "--out", out, "--store", store, "--json")

    head, tail = RECIPE.split("[final_training]")
    before = (out / "prune_log.jsonl").stat().st_mtime_ns
    done = call(f"{head}[final_training]{tail.replace('max_steps = 4', 'max_steps = 6')}checkpoint_minutes = 5.0\n")
    assert "final: resuming at step 4 of 6" in done.err
    assert done.document()["digest"] != run.document["digest"]
    assert (out / "prune_log.jsonl").stat().st_mtime_ns == before
    assert (steps("prune"), steps("final")) == ([4], [4, 6])
    done = call(RECIPE.replace("max_steps = 4", "max_steps = 6"))
    assert "prune: resuming at step 4 of 6" in done.err
    assert (steps("prune"), steps("final")) == ([4, 6], [6])
    refusal = call(RECIPE.replace("max_steps = 4", "max_steps = 6\nlearning_rate = 0.5"))
    assert refusal.code == 2
    assert "(final_training.learning_rate, prune_training.learning_rate differ)" in refusal.err


def test_a_dry_run_leaves_no_trace(run: Run, task: Task, tmp_path: Path) -> None:
    out, store = tmp_path / "out", tmp_path / "store"
    arguments = ("prune", task.recipe(), "--out", out, "--store", store, "--dry-run")
    document = nash(*arguments, "--json").document()
    assert [(phase["name"], phase["steps"], phase["rows_per_step"]) for phase in document["phases"]] == [
        ("prune", 4, 8),
        ("final", 4, 8),
    ]
    assert document["rows"] == {"training": 60, "validation": 10, "test": 10}
    used = sum(path.stat().st_size for path in run.out.rglob("*") if path.is_file())
    assert 0.3 * document["bytes"] < used, "an estimate, and of the same order"
    shown = nash(*arguments)
    assert "2 of 3 decoder layers (0, 2), 40% of encoder cut" in shown.out
    assert "nothing was trained or written" in shown.out
    assert not out.exists()
    assert not store.exists()


def test_too_little_quality_is_not_published(run: Run, task: Task, tmp_path: Path) -> None:
    """The run's folder stays, and asking for less publishes what is there."""
    out, store = Path(shutil.copytree(run.out, tmp_path / "run")), tmp_path / "store"
    results = json.loads((out / "results.json").read_text())
    for side, value in (("dense", 80.0), ("pruned", 60.0)):
        results[side]["metrics"]["exact_match"] = value
    (out / "results.json").write_text(json.dumps(results))
    arguments = ("prune", task.recipe(), "--out", out, "--store", store)
    refused = nash(*arguments, "--min-quality", "97%")
    assert refused.code == 1
    assert "75.0% of the dense one's quality (exact match 80.00 % before, 60.00 % now)" in refused.err
    assert not Store(store).list()
    assert (out / "model").is_dir()
    done = nash(*arguments, "--min-quality", "0.7")
    assert done.code == 0
    assert "warning: the pruned model has 75.0% of the dense one's quality" in done.err
    assert "write 97% or 0.97" in nash(*arguments, "--min-quality", "much").err


def test_a_slower_model_is_published_on_request_only(run: Run, task: Task, tmp_path: Path) -> None:
    out, store = Path(shutil.copytree(run.out, tmp_path / "run")), tmp_path / "store"
    results = json.loads((out / "results.json").read_text())
    results["speedup"] |= {"median": 0.9, "interval": [0.85, 0.95]}
    (out / "results.json").write_text(json.dumps(results))
    recipe = task.recipe("strict", RECIPE.replace("publish_slower = true\n", ""))
    refused = nash("prune", recipe, "--out", out, "--store", store)
    assert refused.code == 1
    assert "slower than the dense one, 0.90x as fast (95 % interval: 0.85 to 0.95)" in refused.err
    assert not Store(store).list()
    assert nash("prune", recipe, "--out", out, "--store", store, "--publish-slower").code == 0


def test_without_a_shape_the_decoder_is_cut(task: Task, tmp_path: Path) -> None:
    flags = ["--model", task.folder / "dense", "--train", task.folder / "train.jsonl", "--name", "r"]
    flags += ["--eval", task.folder / "validation.jsonl", "--out", tmp_path / "out", "--store", tmp_path / "store"]
    outcome = nash("prune", *flags, "--dry-run")
    assert "2 of 3 decoder layers (0, 2), 30% of encoder cut" in outcome.out
    assert "2 of the decoder's layers are kept (--decoder-layers, --speedup)" in outcome.err
    assert "3 of 3 decoder layers" in nash("prune", *flags, "--dry-run", "--encoder-sparsity", 0.2).out


def test_flags_alone(run: Run, task: Task, tmp_path: Path) -> None:
    """A dense model out of the store, kept as it is: only the decoder is shortened."""
    arguments = [
        "--model",
        "reverse@dense",
        "--train",
        task.folder / "train.jsonl",
        "--name",
        "reverse",
        "--alias",
        "s",
    ]
    arguments += ["--eval", task.folder / "validation.jsonl", "--encoder-sparsity", 0, "--decoder-layers", 1]
    arguments += ["--max-steps", 1, "--out", tmp_path / "out", "--store", run.store]
    store = tmp_path / "store"
    shutil.copytree(run.store, store)
    document = nash("prune", *arguments[:-1], store, "--json").document()
    assert document["ref"] == "reverse@s"
    stored = Store(store).resolve("reverse@s")
    assert stored.manifest.lineage.parent == Store(store).resolve("reverse@dense").digest
    spec = Model.open(Store(store).checkout("reverse@s")).spec
    assert (len(spec.decoder), spec.encoder_sparsity) == (1, 0.0)


def test_four_bits_besides(run: Run, task: Task, tmp_path: Path) -> None:
    """Of a finished run they are all that is still to be made, and a part of what is published."""
    out, store = shutil.copytree(run.out, tmp_path / "run"), tmp_path / "store"
    settings = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps(settings | {"quantization": {"int4": True}}))
    done = nash("prune", task.recipe(), "--int4", "--out", out, "--store", store, "--json")
    assert "four bits: rounding the matrices" in done.err
    assert done.document()["ref"] == "reverse@pruned"
    version = Store(store).resolve("reverse@pruned")
    assert INT4 in [file.path for file in version.manifest.files]
    Engine.load(Model.open(Store(store).checkout(version.ref)), EngineConfig(dtype="int4", slots=1))


def test_a_table_for_people(run: Run, task: Task) -> None:
    outcome = nash("prune", task.recipe(), "--out", run.out, "--store", run.store)
    assert outcome.code == 0
    for text in ("reverse@pruned", "exact match", "total ms", "2 decoder layers"):
        assert text in outcome.out


def refused(task: Task, tmp_path: Path, recipe: Path, *flags: object) -> str:
    """Exit 2, one line that says what and what to do, and nothing published or begun."""
    store, out = tmp_path / "store", tmp_path / "out"
    outcome = nash("prune", recipe, "--out", out, "--store", store, "--json", *flags)
    assert outcome.code == 2, outcome.err
    assert outcome.out == ""
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, outcome.err
    assert outcome.err.splitlines()[-1] == errors[0]
    assert not Store(store).list()
    assert not out.exists()
    return errors[0]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[pruning]", "[pruning]\nsparsity = 0.3", "pruning.sparsity"),
        ("decoder_layers = 2", "decoder_layers = 9", "decoder_layers 9"),
        ("decoder_layers = 2", "decoder_layers = [0, 3]", "decoder_layers [0, 3]"),
        (f"= {SPARSITY}", "= 1.5", "pruning.encoder_sparsity = 1.5"),
        ("./dense", "absent@dense", "absent"),
        ("./dense", "./absent", "absent"),
        ('"reverse"', '"Reverse"', "Reverse"),
        ("test.jsonl", "absent.jsonl", "absent.jsonl"),
        ("[pruning]", "[pruning]\ngate_heads = false\ngate_units = false", "gate_heads"),
        (f"= {SPARSITY}", "= 0.7\ngate_heads = false", "encoder_sparsity 0.7 is out of reach"),
    ],
)
def test_bad_recipes(task: Task, tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in RECIPE
    assert says in refused(task, tmp_path, task.recipe("bad", RECIPE.replace(old, new, 1)))


def test_a_malformed_row(task: Task, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"source": "a", "target": "b"}\n{"source": "a"}\n')
    message = refused(task, tmp_path, task.recipe(), "--train", data)
    assert f"{data}, line 2" in message


def test_the_dense_models_alias(task: Task, tmp_path: Path) -> None:
    assert "alias 'dense' is the dense model's" in refused(task, tmp_path, task.recipe(), "--alias", "dense")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("generation_config.json", None, "no generation_config.json"),
        ("training_args.bin", b"PK\x03\x04", "training_args.bin"),
        ("model.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "model.safetensors"),
    ],
)
def test_what_could_not_be_published_is_refused_before_training(
    task: Task, tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(task.folder / "dense", model)
    (model / name).unlink(missing_ok=True)
    if content is not None:
        (model / name).write_bytes(content)
    assert says in refused(task, tmp_path, task.recipe(), "--model", model)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", "[]", "does not hold a JSON object"),
        ("tokenizer_config.json", "[]", "cannot be loaded"),
        (
            "tokenizer_config.json",
            '{"tokenizer_class": "T5Tokenizer"}',
            "cannot be loaded",
        ),  # its vocabulary is no T5's
        ("tokenizer_config.json", '{"pad_token": 5}', "cannot be loaded"),
        ("generation_config.json", '{"penalty_alpha": 0.6, "top_k": 4}', "penalty_alpha"),
    ],
)
def test_a_model_that_could_not_be_assessed_is_refused_before_training(
    task: Task, tmp_path: Path, name: str, content: str, says: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(task.folder / "dense", model)
    (model / name).write_text(content)
    assert says in refused(task, tmp_path, task.recipe(), "--model", model)


def test_a_store_that_cannot_be_written_is_told_before_training(task: Task, tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    store.write_text("not a folder")
    outcome = nash("prune", task.recipe(), "--out", out, "--store", store)
    assert outcome.code != 0
    assert f"{store}" in outcome.err
    assert "is a file: give the folder of a store" in outcome.err
    assert not list(out.glob("prune_log*")), "nothing was trained"
    store.unlink()
    assert nash("prune", task.recipe(), "--out", out, "--store", store).code == 0, "the run goes on once it can"


def test_a_configuration_that_transformers_refuses(task: Task, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(task.folder / "dense", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"dropout_rate": 2.0}))
    outcome = nash("prune", task.recipe(), "--out", tmp_path / "out", "--store", tmp_path / "store", "--model", model)
    assert outcome.code == 2
    assert "transformers cannot load the model" in outcome.err


def test_a_tokenizer_whose_class_numbers_otherwise(task: Task, tmp_path: Path) -> None:
    """Such as one of another family's, that adds its special tokens behind the vocabulary."""
    model = tmp_path / "model"
    shutil.copytree(task.folder / "dense", model)
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "BartTokenizer"}')
    outcome = nash("prune", task.recipe(), "--out", tmp_path / "out", "--store", tmp_path / "store", "--model", model)
    assert outcome.code == 2
    assert "the model has a vocabulary of 30: they do not belong together" in outcome.err


def test_padding_that_the_configuration_leaves_open(task: Task, tmp_path: Path) -> None:
    """Its family's padding is meant, as in serving."""
    model = tmp_path / "model"
    shutil.copytree(task.folder / "dense", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    assert load_dense(Model.open(model)).config.pad_token_id == PAD_ID


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"exact"', '"correlation"', "is not a number, as metric = 'correlation' needs"),
        ("max_source_tokens = 16", "max_source_tokens = 1000000", "MB are free"),
        ("[pruning]", "[workload]\nthreads = 2000\n[pruning]", "threads is 2000"),
        ("[pruning]", "[workload]\nbatch = 100000000000\n[pruning]", "MB are free"),
    ],
)
def test_what_could_not_be_assessed_is_refused_before_training(
    task: Task, tmp_path: Path, old: str, new: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend in ("pytorch.backend", "native.backend"):
        monkeypatch.setattr(f"server.engine.{backend}.available_bytes", lambda device: 10**9)
    assert says in refused(task, tmp_path, task.recipe("unfit", RECIPE.replace(old, new, 1)))


def test_another_family(task: Task, tmp_path: Path) -> None:
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "gpt2"}')
    message = refused(task, tmp_path, task.recipe(), "--model", tmp_path / "gpt")
    assert "model_type 'gpt2' is not supported" in message
    assert "t5, mt5, umt5, bart, mbart, marian, pegasus, m2m_100" in message


def test_a_pruned_model_is_not_pruned_again(run: Run, task: Task, tmp_path: Path) -> None:
    assert "already pruned" in refused(task, tmp_path, task.recipe(), "--model", f"{run.out / 'model'}/")


@pytest.mark.parametrize("below", [".", "pruned"])
def test_the_models_own_folder_is_no_place_for_a_run(task: Task, tmp_path: Path, below: str) -> None:
    model = task.folder / "dense"
    before = sorted(model.iterdir())
    outcome = nash("prune", task.recipe(), "--out", model / below, "--store", tmp_path / "store")
    assert outcome.code == 2
    assert "lies in the model's own folder" in outcome.err
    assert sorted(model.iterdir()) == before


def test_a_model_without_a_tokenizer(task: Task, tmp_path: Path) -> None:
    shutil.copytree(task.folder / "dense", tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    assert "tokenizer.json" in refused(task, tmp_path, task.recipe(), "--model", tmp_path / "bare")


def test_a_model_without_weights(task: Task, tmp_path: Path) -> None:
    shutil.copytree(task.folder / "dense", tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    assert "model.safetensors" in refused(task, tmp_path, task.recipe(), "--model", tmp_path / "bare")


def test_data_that_changed_under_a_run(run: Run, task: Task) -> None:
    """Else the lineage would name rows that the model has never seen."""
    data = task.folder / "train.jsonl"
    before = data.read_text()
    data.write_text(before + '{"source": "new", "target": "wen"}\n')
    try:
        outcome = nash("prune", task.recipe(), "--out", run.out, "--store", run.store)
    finally:
        data.write_text(before)
    assert outcome.code == 2
    assert "train differ" in outcome.err


def test_a_folder_of_another_run(run: Run, task: Task) -> None:
    before = len(Store(run.store).list())
    outcome = nash("prune", task.recipe(), "--out", run.out, "--store", run.store, "--seed", 1)
    assert outcome.code == 2
    assert "seed differ" in outcome.err
    assert len(Store(run.store).list()) == before


def test_data_of_the_hub_by_flags(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows `hub:` is no path from here."""

    def load(name: str, config: str | None, *, split: str, revision: str | None) -> None:
        raise ConnectionError(f"{name} {split}")

    monkeypatch.setattr("datasets.load_dataset", load)
    message = refused(task, tmp_path, task.recipe(), "--train", "hub:owner/rows:train")
    assert "hub:owner/rows:train cannot be loaded (owner/rows train)" in message


def test_nothing_given() -> None:
    outcome = nash("prune")
    assert outcome.code == 2
    assert "--model" in outcome.err


def test_an_interrupted_run_says_so_and_goes_on(task: Task, tmp_path: Path) -> None:
    """SIGINT in the middle of training, then the same command once more."""
    text = RECIPE.replace("max_steps = 4", "max_steps = 60", 1)
    arguments = ["prune", str(task.recipe("long", text)), "--out", str(tmp_path / "out")]
    arguments += ["--store", str(tmp_path / "store"), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline_s = time.monotonic() + 300
    checkpoints = tmp_path / "out" / "checkpoints" / "prune"
    while last_checkpoint(checkpoints) is None and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("interrupted: ")
    assert not (tmp_path / "out" / "compact").exists()
    document = nash(*arguments).document()
    assert Store(tmp_path / "store").resolve("reverse@pruned").digest == document["digest"]
