"""`nash prune --speedup` as its user sees it, on a machine whose costs are known."""

import json
from pathlib import Path
from typing import Any

import pytest

from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from model_store.store import Store
from nash.measuring.figures import Latency
from nash.measuring.latency import Workload
from nash.run.folder import RunFolder
from tests.nash.command_line import Outcome, nash
from tests.nash.known_costs import KnownCosts, set_costs
from tests.nash.tiny_training import build_task_model, task_rows

RECIPE = """
model = "./dense"
name = "reverse"
publish_slower = true
[data]
train = "train.jsonl"
validation = "validation.jsonl"
max_source_tokens = 16
max_target_tokens = 16
[pruning]
speedup = 2
[workload]
batch = 2
new_tokens = 5
[prune_training]
validation_rows = 0
max_steps = 2
batch_size = 8
[final_training]
validation_rows = 0
max_steps = 2
batch_size = 8
"""


def by_weights(spec: ModelSpec) -> Latency:
    """Every decoder layer takes 2 ms, a whole encoder 3 ms by its prunable weights."""
    encode_ms, decode_ms = 3.0 * (1 - spec.encoder_sparsity), 2.0 * len(spec.decoder)
    return Latency(encoder_ms=encode_ms, step_ms=1.0, total_ms=encode_ms + decode_ms)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> KnownCosts:
    return set_costs(monkeypatch, by_weights)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    build_task_model(folder / "dense", dropout=0.0)
    rows = [{"source": row.source, "target": list(row.targets)} for row in task_rows(24)]
    for split, chosen in {"train": rows[:16], "validation": rows[16:]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return folder


def prune(folder: Path, tmp_path: Path, *flags: object, recipe: str = RECIPE) -> Outcome:
    path = folder / "asked.toml"
    path.write_text(recipe)
    return nash("prune", path, "--out", tmp_path / "out", "--store", tmp_path / "store", *flags)


def test_from_the_asked_speed_to_the_report(folder: Path, tmp_path: Path, machine: KnownCosts) -> None:
    document: Any = prune(folder, tmp_path, "--json").document()
    # Dense: 3 layers and the encoder are 9 ms. Of 4.5 ms one layer leaves 2.5 for the encoder; two would leave 0.5.
    spec = Model.open(Store(tmp_path / "store").checkout("reverse@pruned")).spec
    assert len(spec.decoder) == document["decoder_layers"] == 1
    assert spec.encoder_sparsity == pytest.approx(1 / 6, abs=0.06)
    assert (document["asked"], document["measured"]) == (2.0, document["speedup"])
    assert document["predicted"] == pytest.approx(2.0, rel=0.06)
    assert len(document["speedup_quartiles"]) == 2
    assert (document["batch"], document["new_tokens"], document["dtype"]) == (2, 5, "float32")
    [*_, workload] = machine.workloads
    assert document["source_tokens"] == workload.source_tokens
    assert workload == Workload(batch=2, source_tokens=workload.source_tokens, new_tokens=5)
    manifest = Store(tmp_path / "store").resolve("reverse@pruned").manifest
    pruning: Any = manifest.lineage.recipe["pruning"]
    assert pruning["speedup"] == 2.0


def test_a_run_that_goes_on_keeps_its_shape(folder: Path, tmp_path: Path, machine: KnownCosts) -> None:
    first = prune(folder, tmp_path, "--json").document()
    calls = list(machine.measured)
    machine.times = lambda spec: pytest.fail("measured again")
    assert prune(folder, tmp_path, "--json").document() == first
    for lost in ("compact", "model"):
        (tmp_path / "out" / lost).rename(tmp_path / f"lost-{lost}")
    assert prune(folder, tmp_path, "--json").document()["digest"] == first["digest"]
    assert machine.measured == calls
    people = prune(folder, tmp_path)
    assert people.code == 0
    text = " ".join(people.out.split())
    assert f"2 was asked for, {first['predicted']:.2f} predicted" in text
    assert "2 requests together" in text


def test_a_flag_stands_in_for_the_recipes_shape(folder: Path, tmp_path: Path, machine: KnownCosts) -> None:
    recipe = RECIPE.replace("speedup = 2", "decoder_layers = 2\nencoder_sparsity = 0.4")
    flags = ["--speedup", 1.3, "--batch", 3, "--source-tokens", 6, "--new-tokens", 4, "--threads", 1]
    document = prune(folder, tmp_path, *flags, "--json", recipe=recipe).document()
    # 9 / 1.3 = 6.92 ms: two layers leave 2.92 ms for the encoder.
    assert (document["asked"], document["decoder_layers"]) == (1.3, 2)
    assert machine.workloads[0] == Workload(batch=3, source_tokens=6, new_tokens=4, threads=1)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--speedup", 9], "a speed-up of 9 is out of reach: the most on this machine is about 3.9"),
        (["--speedup", 1], "pruning.speedup = 1.0"),
        (["--speedup", 2, "--decoder-layers", 2], "speedup chooses the shape: leave decoder_layers out"),
        (["--speedup", 2, "--encoder-sparsity", 0.2], "speedup chooses the shape: leave encoder_sparsity out"),
        (["--decoder-layers", 2], "speedup chooses the shape: leave decoder_layers out, or leave speedup out"),
        (["--batch", 0], "--batch"),
        (["--dtype", "float8"], "workload.dtype = 'float8'"),
    ],
)
def test_refusals(folder: Path, tmp_path: Path, machine: KnownCosts, flags: list[object], says: str) -> None:
    """Before anything is trained or written: the folder is still free for any other run."""
    outcome = prune(folder, tmp_path, *flags, "--json")
    assert outcome.code == 2, outcome.err
    assert says in outcome.err
    assert outcome.out == ""
    assert {file.name for file in tmp_path.glob("out/*")} <= {".lock"}


def test_nothing_is_measured_beside_another_run(folder: Path, tmp_path: Path, machine: KnownCosts) -> None:
    with RunFolder(tmp_path / "out", {}, {}):
        outcome = prune(folder, tmp_path)
    assert outcome.code == 2
    assert "another run is at work" in outcome.err
    assert machine.measured == []


def test_a_trimmed_vocabulary_is_compared_with_the_whole_one(folder: Path, tmp_path: Path, machine: KnownCosts) -> None:
    recipe = RECIPE.replace("speedup = 2", "speedup = 2\ntrim_vocab = true")
    document = prune(folder, tmp_path, "--json", recipe=recipe).document()
    dense, pruned = (
        Model.open(Store(tmp_path / "store").checkout(f"reverse@{alias}")).spec for alias in ("dense", "pruned")
    )
    assert pruned.vocab_size < dense.vocab_size
    assert len(machine.measured) == 3, "the probes, the chosen shape, and what the gates decided"
    for reference, *cut in machine.measured:
        assert reference.vocab_size == dense.vocab_size
        assert {spec.vocab_size for spec in cut} == {pruned.vocab_size}
    assert document["asked"] == 2.0


def test_without_gates_only_the_decoder_gives(folder: Path, tmp_path: Path, machine: KnownCosts) -> None:
    recipe = RECIPE.replace("speedup = 2", "speedup = 1.7\ngate_heads = false\ngate_units = false")
    document = prune(folder, tmp_path, "--json", recipe=recipe).document()
    assert (document["decoder_layers"], document["encoder_sparsity"]) == (1, 0.0)
    assert document["predicted"] == pytest.approx(9 / 5)
