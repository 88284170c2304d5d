"""`nash prune --speedup` with `structure = "search"`, on a machine whose costs are known."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from model_store.model.layout import Sublayer
from model_store.model.model import Model
from model_store.store import Store
from nash.pruning import structure_stages
from nash.structure import widths
from nash.structure.widths import Width
from tests.nash.command_line import Outcome, nash
from tests.nash.known_costs import KnownCosts, by_sublayer, set_costs
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
structure = "search"
speedup = 2
search_depths = 2
search_steps = 2
[workload]
new_tokens = 5
[final_training]
validation_rows = 0
max_steps = 2
batch_size = 8
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> KnownCosts:
    return set_costs(monkeypatch, by_sublayer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    build_task_model(folder / "dense", dropout=0.0)
    rows = [{"source": row.source, "target": list(row.targets)} for row in task_rows(24)]
    for split, chosen in {"train": rows[:16], "validation": rows[16:]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return folder


def prune(folder: Path, tmp_path: Path, *flags: object, recipe: str = RECIPE) -> Outcome:
    path = folder / "searched.toml"
    path.write_text(recipe)
    return nash("prune", path, "--out", tmp_path / "out", "--store", tmp_path / "store", *flags)


def test_the_structure_is_as_fast_as_asked(folder: Path, tmp_path: Path, machine: KnownCosts) -> None:
    document: Any = prune(folder, tmp_path, "--json").document()
    dense, pruned = (
        Model.open(Store(tmp_path / "store").checkout(f"reverse@{alias}")).spec for alias in ("dense", "pruned")
    )
    assert by_sublayer(dense).total_ms / by_sublayer(pruned).total_ms == pytest.approx(2.0, rel=0.05)
    assert document["asked"] == 2.0
    assert document["predicted"] == pytest.approx(by_sublayer(dense).total_ms / by_sublayer(pruned).total_ms, rel=1e-6)
    found = json.loads((tmp_path / "out" / structure_stages.STRUCTURES).read_text())
    assert [len(structure["decoder_layers"]) for structure in found] == [1, 3]
    chosen = json.loads((tmp_path / "out" / structure_stages.STRUCTURE).read_text())
    assert chosen in found
    losses = []
    for structure in found:
        log = (tmp_path / "out" / f"depth-{len(structure['decoder_layers'])}_log.jsonl").read_text().splitlines()
        losses.append(next(entry["eval_loss"] for entry in map(json.loads, reversed(log)) if "eval_loss" in entry))
    assert chosen == found[losses.index(min(losses))]
    assert len(machine.measured) == 2, "the probes, then all structures beside the dense model"


def test_a_run_that_goes_on_searches_no_more(
    folder: Path, tmp_path: Path, machine: KnownCosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prune(folder, tmp_path, "--json").document()
    calls = len(machine.measured)
    for lost in ("compact", "model"):
        (tmp_path / "out" / lost).rename(tmp_path / f"lost-{lost}")
    monkeypatch.setattr(structure_stages, "measure_widths", lambda *_: pytest.fail("measured again"))
    assert prune(folder, tmp_path, "--json").document()["digest"] == first["digest"]
    assert len(machine.measured) == calls
    (tmp_path / "out" / structure_stages.STRUCTURES).unlink()
    (tmp_path / "out" / structure_stages.STRUCTURE).unlink()
    (tmp_path / "out" / "compact").rename(tmp_path / "again-compact")
    (tmp_path / "out" / "model").rename(tmp_path / "again-model")
    assert prune(folder, tmp_path, "--json").document()["digest"] == first["digest"], "the widths' losses are kept"


def test_an_interrupted_measurement_goes_on_where_it_was(
    folder: Path, tmp_path: Path, machine: KnownCosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    measure = widths._widths

    def third_fails(teacher: PreTrainedModel, sublayer: Sublayer, *rest: Any) -> list[Width]:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(sublayer.out)
        return measure(teacher, sublayer, *rest)

    monkeypatch.setattr(widths, "_widths", third_fails)
    assert prune(folder, tmp_path, "--json").code == 130
    first, measured = measured, []

    def counted(teacher: PreTrainedModel, sublayer: Sublayer, *rest: Any) -> list[Width]:
        measured.append(sublayer.out)
        return measure(teacher, sublayer, *rest)

    monkeypatch.setattr(widths, "_widths", counted)
    whole = prune(folder, tmp_path, "--json").document()
    assert len(first) == 2
    assert not {*first} & {*measured}
    (tmp_path / "out").rename(tmp_path / "interrupted")
    (tmp_path / "store").rename(tmp_path / "interrupted-store")
    assert prune(folder, tmp_path, "--json").document()["digest"] == whole["digest"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (("speedup = 2", "speedup = 50"), "a speed-up of 50 is out of reach: the most on this machine is about 3.3"),
        (("speedup = 2\n", ""), 'pruning.structure = "search" searches for a speed: give pruning.speedup'),
        (("search_depths = 2", "search_depths = 0"), "search_depths = 0"),
    ],
)
def test_refusals(folder: Path, tmp_path: Path, machine: KnownCosts, changed: tuple[str, str], says: str) -> None:
    outcome = prune(folder, tmp_path, "--json", recipe=RECIPE.replace(*changed))
    assert outcome.code == 2, outcome.err
    assert says in outcome.err
    assert {file.name for file in tmp_path.glob("out/*")} <= {".lock"}
