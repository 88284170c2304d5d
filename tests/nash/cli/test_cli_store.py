"""The commands that keep a store in order, as a user and as a script see them."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_store.model.config import spec_of
from model_store.store import Store
from model_store.version.manifest import Lineage, MeasuredOn
from tests.model_store.aging import age
from tests.nash.command_line import Outcome, nash
from tests.tiny_models import build_compact_t5, build_tiny_t5

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_t5(tmp_path_factory.mktemp("dense") / "tiny")


@pytest.fixture(scope="module")
def compact(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_compact_t5(dense, tmp_path_factory.mktemp("compact") / "tiny")


@pytest.fixture
def store(dense: Path, compact: Path, tmp_path: Path) -> Store:
    """A dense model, one pruned from it, and a third version that nothing names."""
    made = Store(tmp_path / "store")
    made.publish("g2p", dense, alias="dense", metrics={"word_error_rate": 30.0}, licence="MIT")
    lineage = Lineage(
        parent=made.resolve("g2p:1").digest,
        data={"train": "b" * 64},
        recipe={"name": "g2p"},
        seed=3,
        code_version="0.1.0",
    )
    metrics, on = {"word_error_rate": 31.0}, MeasuredOn(split="test", rows=500)
    made.publish("g2p", compact, alias="pruned", lineage=lineage, metrics=metrics, measured_on=on)
    made.publish("g2p", dense, metrics={"word_error_rate": 29.0})
    return made


@pytest.fixture
def run(store: Store) -> Run:
    """Run a command with `--json` and return its document."""

    def run_json(*arguments: object) -> Any:
        outcome = nash("models", *arguments, "--store", store.url, "--json")
        assert outcome.code == 0, outcome.err
        assert outcome.out.isascii()
        return json.loads(outcome.out)

    return run_json


def shown(store: Store, *arguments: object) -> Outcome:
    """Run a command as a person does."""
    return nash("models", *arguments, "--store", store.url)


def test_untag_rollback_and_history(run: Run, store: Store) -> None:
    assert run("tag", "g2p:3", "pruned")["version"] == 3
    assert run("untag", "g2p", "pruned") == {"name": "g2p", "alias": "pruned", "version": None}
    back = run("rollback", "g2p", "pruned")
    assert (back["alias"], back["version"], back["undoes"]) == ("pruned", 3, 3)
    assert run("rollback", "g2p", "pruned")["version"] == 2
    moves = run("history", "g2p", "pruned")
    assert [(move["generation"], move["version"], move["undoes"]) for move in moves] == [
        (1, 2, None),
        (2, 3, None),
        (3, None, None),
        (4, 3, 3),
        (5, 2, 2),
    ]
    assert {move["alias"] for move in run("history", "g2p")} == {"default", "dense", "pruned"}
    refused = shown(store, "rollback", "g2p", "pruned")
    assert refused.code == 2
    assert "g2p@pruned has nothing to go back to" in refused.err
    text = shown(store, "history", "g2p", "pruned").out
    assert "rollback of move 3" in text
    assert "nothing" in text


def test_reasons_are_in_the_history(run: Run, store: Store) -> None:
    run("tag", "g2p:3", "pruned", "--reason", "better on Tuesdays")
    run("rollback", "g2p", "pruned", "--reason", "it was not")
    run("untag", "g2p", "pruned", "--reason", "retired")
    reasons = [move["reason"] for move in run("history", "g2p", "pruned")]
    assert reasons == ["publish", "better on Tuesdays", "it was not", "retired"]
    refused = shown(store, "tag", "g2p:3", "pruned", "--reason", "x" * 1001)
    assert (refused.code, "at most 1000" in refused.err) == (2, True)


@pytest.mark.parametrize("command", ["untag", "rollback", "history"])
def test_a_model_that_is_not_there(command: str, store: Store) -> None:
    outcome = shown(store, command, "other", "live")
    assert "model 'other' is not in the store" in outcome.err


def test_ls_shows_the_others_beside_one_that_cannot_be_read(store: Store) -> None:
    (store.root / "models/g2p/versions/000002").write_text("")
    outcome = shown(store, "ls")
    assert outcome.code == 1
    assert ["g2p:1" in outcome.out, "g2p:2" in outcome.out, "g2p:3" in outcome.out] == [True, False, True]
    assert "g2p:2 cannot be read: " in outcome.err
    lineage = shown(store, "lineage", "g2p:1")
    assert (lineage.code, "g2p:2 cannot be read: " in lineage.err) == (0, True)


def test_rm_names_what_stands_in_the_way(store: Store) -> None:
    for ref, message in (
        ("g2p@pruned", "g2p@pruned can move: name the version by its number"),
        ("g2p:2", "g2p@pruned names g2p:2"),
        ("g2p:9", "no version 9: it has 1 to 3"),
        ("g2p:3", "say --yes, as nobody can be asked here"),
    ):
        outcome = shown(store, "rm", ref)
        assert (outcome.code, outcome.out) == (2, "")
        assert message in outcome.err
    assert len(store.list()) == 3


def test_rm_then_gc(run: Run, store: Store) -> None:
    digest = store.resolve("g2p:3").digest
    assert run("rm", "g2p:3", "--yes") == {"name": "g2p", "version": 3, "digest": digest}
    assert run("gc", "--yes")["things"] == []  # it is too young
    foreign = store.root / "quarantine" / "notes.txt"
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("not a blob")
    age(store.root)
    planned = run("gc", "--dry-run")
    assert planned["dry_run"]
    assert {(thing["kind"], thing["name"]) for thing in planned["things"]} == {("blob", digest), ("view", digest)}
    assert store.verify() == []
    refused = shown(store, "gc")
    assert refused.code == 2
    assert "say --yes" in refused.err
    text = shown(store, "gc", "--dry-run").out
    assert digest in text
    assert "2 things would go" in text
    done = run("gc", "--yes")
    assert done["things"] == planned["things"]
    assert not (store.root / "views" / digest).exists()
    assert foreign.exists()
    assert store.verify() == []


def test_gc_stops_at_what_it_cannot_read(store: Store) -> None:
    store.remove("g2p:3")
    age(store.root)
    digest = store.resolve("g2p:2").digest
    manifest = store.root / "blobs/sha256" / digest[:2] / digest
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes()[:50])
    blobs = sorted(path for path in (store.root / "blobs").rglob("*") if path.is_file())
    outcome = shown(store, "gc", "--yes")
    assert outcome.code == 1
    assert "nothing is collected, for g2p:2 might need anything" in outcome.err
    assert "nash models rm g2p:2" in outcome.err
    assert sorted(path for path in (store.root / "blobs").rglob("*") if path.is_file()) == blobs


def test_lineage(run: Run, store: Store) -> None:
    dense, pruned = store.resolve("g2p:1"), store.resolve("g2p:2")
    tree = run("lineage", "g2p@pruned")
    assert (tree["digest"], tree["versions"], tree["asked"]) == (dense.digest, ["g2p:1"], False)
    [child] = tree["children"]
    assert (child["digest"], child["versions"], child["asked"]) == (pruned.digest, ["g2p:2"], True)
    assert child["lineage"]["data"] == {"train": "b" * 64}
    text = shown(store, "lineage", "g2p@pruned").out
    assert text.index("g2p:1 @default @dense") < text.index("g2p:2 @pruned")
    assert "b" * 64 in text
    store.publish("alone", store.checkout("g2p:2"), lineage=Lineage(parent="f" * 64))
    assert "ffffffffffff, not in this store" in shown(store, "lineage", "alone").out


def test_diff(run: Run, store: Store, dense: Path, compact: Path) -> None:
    document = run("diff", "g2p@dense", "g2p@pruned")
    for side, folder in (("first", dense), ("second", compact)):
        spec = spec_of(json.loads((folder / "config.json").read_text()))
        assert document[side]["layers"] == spec.layer_config()
    assert document["latency"] == []
    text = shown(store, "diff", "g2p@dense", "g2p@pruned").out
    rows = [line.split() for line in text.splitlines()]
    assert ["word", "error", "rate", "30", "31", "0.97"] in rows
    pictures = [line for line in text.splitlines() if line.startswith(("encoder ", "decoder ")) and "units" in line]
    assert len(pictures) == 7
    assert any("." in line for line in pictures)


def test_bench_keeps_its_figures_beside_the_version(run: Run, store: Store) -> None:
    lengths = ("--source-tokens", "4", "--new-tokens", "3", "--repeats", "1", "--threads", "1", "--dtype", "float32")
    refs = ("g2p@dense", "g2p@pruned")
    for _ in range(2):
        assert nash("bench", *refs, *lengths, "--record", "--store", store.url, "--json").code == 0
    kept = run("show", "g2p@dense")["measurements"]
    assert len(kept) == 2
    assert {record["kind"] for record in kept} == {"latency"}
    assert kept[0]["processor"]
    assert (kept[0]["source_tokens"], kept[0]["new_tokens"], kept[0]["dtype"]) == (4, 3, "float32")
    [both] = run("diff", *refs)["latency"]
    assert both["first"]["total_ms"] > 0
    assert "ms, float32, batch 1, 4 in, 3 out" in shown(store, "diff", *refs).out
    assert "latency in float32" in shown(store, "show", "g2p@dense").out


def test_bench_cannot_keep_the_figures_of_a_folder(store: Store, dense: Path) -> None:
    outcome = nash("bench", dense, "--record", "--store", store.url)
    assert (outcome.code, outcome.out) == (2, "")
    assert "is not in the store, so its figures cannot be kept there" in outcome.err


def test_card(run: Run, store: Store, tmp_path: Path) -> None:
    out = tmp_path / "README.md"
    assert run("card", "g2p@pruned", "--out", out) == {"path": str(out)}
    _, block, body = out.read_text().split("---\n", 2)
    metadata = yaml.safe_load(block)
    assert metadata["tags"] == ["encoder-decoder", "t5", "pruned", "nash"]
    [result] = metadata["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "word_error_rate", "value": 31.0}]
    assert result["dataset"]["split"] == "test"
    assert "500 rows of test" in body
    assert store.resolve("g2p:1").digest in body
    taken = shown(store, "card", "g2p@pruned", "--out", out)
    assert (taken.code, taken.out) == (2, "")
    assert "already exists" in taken.err
    run("card", "g2p@dense", "--out", tmp_path / "dense.md")
    assert yaml.safe_load((tmp_path / "dense.md").read_text().split("---\n")[1])["license"] == "mit"


def test_push_and_pull(run: Run, store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other"
    pushed = run("push", "g2p@pruned", other, "--alias", "live")
    digest = store.resolve("g2p@pruned").digest
    assert pushed == {"name": "g2p", "version": 1, "digest": digest, "created": True, "store": str(other)}
    assert not run("push", "g2p@pruned", other)["created"]
    assert Store(other).resolve("g2p@live").digest == digest
    pulled = nash("models", "pull", "g2p@live", other, "--store", tmp_path / "third", "--json")
    assert pulled.code == 0
    assert json.loads(pulled.out)["digest"] == digest
    assert "copying g2p:1" in pulled.err
    missing = shown(store, "pull", "nothing", other)
    assert (missing.code, missing.out) == (2, "")
    assert f"model 'nothing' is not in the store {other}" in missing.err


def test_import_takes_the_models_own_files_alone(run: Run, store: Store, dense: Path, tmp_path: Path) -> None:
    folder = tmp_path / "My Model"
    shutil.copytree(dense, folder)
    (folder / "optimizer.pt").write_bytes(b"\x80\x04K\x01.")
    (folder / "trainer_state.json").write_text("{}")
    done = run("import", folder, "--alias", "dense")
    assert (done["name"], done["version"]) == ("my-model", 1)
    assert {file.path for file in store.resolve("my-model").manifest.files} == {path.name for path in dense.iterdir()}
    assert run("import", folder, "--name", "other")["name"] == "other"


def test_import_refuses_pickles_and_says_what_to_do(store: Store, dense: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(dense, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    outcome = shown(store, "import", folder)
    assert (outcome.code, outcome.out) == (2, "")
    assert "pytorch_model.bin: pickles" in outcome.err
    assert "save_pretrained(NEW), and import NEW" in outcome.err


def test_a_folder_that_is_no_store(dense: Path) -> None:
    for arguments in (("ls",), ("publish", "g2p", dense), ("gc",), ("verify",)):
        outcome = nash("models", *arguments, "--store", dense.parent)
        assert (outcome.code, outcome.out) == (2, "")
        assert "is not a model store (it holds 'tiny')" in outcome.err


def test_ls_is_columns(store: Store) -> None:
    lines = shown(store, "ls").out.splitlines()
    assert lines[0].split() == ["REF", "ALIASES", "KIND", "LAYERS", "WEIGHTS", "SIZE", "METRICS", "CREATED"]
    assert [line.split()[0] for line in lines[1:]] == ["g2p:1", "g2p:2", "g2p:3"]
    assert "default,dense" in lines[1]
    assert lines[1].endswith("ago")


def test_the_shell_completes_refs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NASH_STORE", store.url)
    monkeypatch.setenv("_NASH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "nash models show g2p@")
    monkeypatch.setenv("COMP_CWORD", "3")
    monkeypatch.setattr(sys, "argv", ["nash"])
    outcome = nash()
    assert outcome.out.split() == ["g2p@default", "g2p@dense", "g2p@pruned"]


def test_a_store_that_is_not_there_is_not_called_well(tmp_path: Path) -> None:
    for command in ("verify", "gc"):
        outcome = nash("models", command, "--store", tmp_path / "typo")
        assert (outcome.code, outcome.out) == (2, "")
        assert "there is no store at" in outcome.err


def test_a_copy_into_the_same_store_is_refused(store: Store) -> None:
    outcome = shown(store, "push", "g2p:1", store.url)
    assert (outcome.code, outcome.out) == (2, "")
    assert "is the store that g2p:1 is in" in outcome.err


def test_what_anybody_may_have_written_is_shown_harmlessly(run: Run, store: Store) -> None:
    store.tag("g2p:3", "pruned", reason="\x1b[31mred\nX")
    text = shown(store, "history", "g2p", "pruned").out
    assert "\x1b" not in text
    assert "\\x1b[31mred\\nX" in text
    folder = store.root / "models/g2p/measurements" / store.resolve("g2p:1").digest
    folder.mkdir(parents=True)
    for number, record in enumerate(({"kind": "latency"}, {"kind": "latency", "total_ms": "x", "dtype": []}, {"a": 1})):
        (folder / f"{number}".zfill(64)).write_text(json.dumps(record))
    assert len(run("show", "g2p:1")["measurements"]) == 3
    assert shown(store, "show", "g2p:1").code == 0
    assert run("diff", "g2p:1", "g2p:2")["latency"] == []
