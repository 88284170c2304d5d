"""The documents of the commands that answer at once, and the exit codes of what is refused."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.golden import masks
from tests.golden.expected_files import Golden
from tests.golden.literal_model import write_literal_model
from tests.golden.nash_process import nash, nash_each


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With models, rows and recipes; what is refused writes nothing into it."""
    folder = tmp_path_factory.mktemp("commands")
    write_literal_model(folder / "dense")
    write_literal_model(folder / "child", shift=1)
    (folder / "rows.jsonl").write_text('{"source": "yes", "target": "no"}\n')
    (folder / "bad-rows.jsonl").write_text('{"source": "yes"}\n')
    (folder / "a-file").write_text("no store")
    data = '[data]\ntrain = "rows.jsonl"\nvalidation = "rows.jsonl"\n'
    recipe = f'model = "./dense"\nname = "words"\n{data}'
    (folder / "unknown-key.toml").write_text(f"sparsity = 1\n{recipe}")
    (folder / "too-many-layers.toml").write_text(f"{recipe}[pruning]\ndecoder_layers = 5\n")
    (folder / "not-toml.toml").write_text("{}")
    (folder / "tune.toml").write_text(f'model = "./absent"\n{data}[training]\n')
    (folder / "sweep.toml").write_text('recipe = "absent.toml"\n')
    return folder


def test_a_store_and_its_documents(folder: Path, golden: Golden) -> None:
    """Publish, list, show, name and check. What changes nothing for the others runs beside them."""
    publish = ["publish", "words"]
    child = ["--parent", "words@dense", "--kind", "pruned", "--alias", "small", "--licence", "MIT"]
    stages: Sequence[Mapping[str, Sequence[str]]] = (
        {"ls of nothing": ["ls"]},
        {"publish": [*publish, "dense", "--alias", "dense"]},
        {"publish again": [*publish, "dense"], "publish under another name": ["publish", "a.b-c_1", "./dense"]},
        {"publish a child": [*publish, "child", *child]},
        {"ls": ["ls"], "show by alias": ["show", "words@small"], "show by version": ["show", "words:001"]},
        {"tag": ["tag", "words:1", "default"]},
        {"show what the name means now": ["show", "words"], "verify": ["verify"]},
        {"tag again": ["tag", "words:2", "default"]},
    )
    documents: dict[str, Any] = {}
    for stage in stages:
        outcomes = nash_each([["models", *arguments, "--json"] for arguments in stage.values()], folder)
        documents |= {name: outcome.document() for name, outcome in zip(stage, outcomes, strict=True)}
    golden.check("commands/models", documents, masks.moments("*.created_at"))


def test_what_is_damaged_is_named(folder: Path, golden: Golden, tmp_path: Path) -> None:
    store = ("--store", tmp_path / "store", "--json")
    nash("models", "publish", "words", "dense", "--alias", "dense", *store, folder=folder).document()
    weights = hashlib.sha256((folder / "dense/model.safetensors").read_bytes()).hexdigest()
    (tmp_path / "store/blobs/sha256" / weights[:2] / weights).unlink()
    (tmp_path / "store/models/words/aliases/dense/000001").write_text("{")
    outcomes = nash_each([["models", "verify", *each, *store] for each in (["words:1"], [])], folder)
    found = {
        name: {"code": outcome.code, "document": json.loads(outcome.out)}
        for name, outcome in zip(("one", "all"), outcomes, strict=True)
    }
    golden.check("commands/damaged", found, masks.sentences("*.document.problems.what"))


def test_what_this_machine_has(folder: Path, golden: Golden) -> None:
    """What stands where, and which dtypes are spoken of; all else is the machine's."""
    document = nash("info", "--json", folder=folder).document()
    on_cpu = [row for row in document["dtypes"] if row["device"] == "cpu"]
    document["dtypes"] = sorted(on_cpu, key=lambda row: str(row["dtype"]))  # the fastest come first
    nothing, texts = type(None), ("version", "python", "torch", "transformers", "system", "cpu.name")
    golden.check(
        "commands/info",
        document,
        *(masks.machines(key) for key in (*texts, "training.device")),
        *(masks.machine_numbers(f"cpu.{key}") for key in ("cores", "threads", "numa_nodes")),
        *(masks.sentences(key) for key in ("cpu.why", "training.why")),
        *(masks.machine_facts(f"cpu.{key}", list) for key in ("sets", "instruction_sets")),
        *(masks.machine_facts(f"dtypes.{key}", str, nothing) for key in ("engine", "refused")),
        masks.machine_facts("dtypes.auto", bool),
        masks.machine_facts("cpu.chosen", str, nothing),
        masks.machine_facts("cpu.quota", float, nothing),
        masks.machine_facts("cuda", list),
        masks.machine_facts("training.precisions", list),
        masks.machine_facts("training.auto", str),
        masks.machine_facts("training.refused", dict),
    )


def test_the_version(folder: Path) -> None:
    outcome = nash("--version", folder=folder)
    assert outcome.code == 0
    assert outcome.out.startswith("nash ")


# What is asked for, and what the refusal has to name, however it is said.
REFUSED: Mapping[str, tuple[str, Sequence[str]]] = {
    "no command": ("prun", ["prun"]),
    "no flag": ("--everything", ["models", "ls", "--everything"]),
    "nothing given": ("REF", ["models", "show"]),
    "nothing in the store": ("absent", ["models", "show", "absent"]),
    "no name": ("Absent", ["models", "show", "Absent"]),
    "publish into a file": ("a-file", ["models", "publish", "words", "dense", "--store", "a-file"]),
    "publish what is not there": ("absent", ["models", "publish", "words", "absent"]),
    "publish what is no model": ("a-file", ["models", "publish", "words", "."]),
    "calibrate on bad rows": (
        "bad-rows.jsonl, line 1",
        ["models", "publish", "words", "dense", "--calibrate-int4", "bad-rows.jsonl"],
    ),
    "evaluate what is not there": ("absent", ["evaluate", "absent", "--data", "rows.jsonl"]),
    "evaluate on no data": ("absent.jsonl", ["evaluate", "./dense", "--data", "absent.jsonl"]),
    "evaluate on bad rows": ("bad-rows.jsonl, line 1", ["evaluate", "./dense", "--data", "bad-rows.jsonl"]),
    "evaluate in no dtype": ("float8", ["evaluate", "./dense", "--data", "rows.jsonl", "--dtype", "float8"]),
    "record of a folder": ("--record", ["evaluate", "./dense", "--data", "rows.jsonl", "--record"]),
    "bench too many threads": ("100000", ["bench", "./dense", "--threads", "100000"]),
    "export onto something": ("child", ["export", "./dense", "--out", "child"]),
    "prune nothing": ("RECIPE", ["prune"]),
    "prune by an unknown key": ("sparsity", ["prune", "unknown-key.toml"]),
    "prune to more than there is": ("decoder_layers 5", ["prune", "too-many-layers.toml"]),
    "prune by too few flags": ("validation", ["prune", "--model", "./dense", "--train", "rows.jsonl"]),
    "finetune what is not there": ("absent", ["finetune", "tune.toml"]),
    "sweep by no recipe": ("absent.toml", ["sweep", "absent.toml"]),
    "serve nothing": ("--model", ["serve"]),
    "serve what is not there": ("absent", ["serve", "--model", "absent@dense"]),
    "serve everybody without keys": ("0.0.0.0", ["serve", "--model", "./dense", "--host", "0.0.0.0"]),
    "demonstrate elsewhere": ("prune.toml", ["demo", "--no-serve"]),
    "load with nothing": ("--workload", ["loadtest"]),
}


def test_what_is_refused(folder: Path, golden: Golden) -> None:
    """2 where the request was wrong, 1 where the work failed; no word on standard output, no traceback, no file."""
    before = sorted(folder.rglob("*"))
    outcomes = nash_each([arguments for _, arguments in REFUSED.values()], folder)
    found = dict(zip(REFUSED, outcomes, strict=True))
    golden.check("commands/refused", {name: {"code": each.code, "out": each.out} for name, each in found.items()})
    assert not [name for name, each in found.items() if "Traceback" in each.err]
    assert not [name for name, each in found.items() if REFUSED[name][0] not in each.err]
    assert sorted(folder.rglob("*")) == before
