"""The command line as a whole: help without weight, exit codes, `nash evaluate` and `nash finetune`."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from model_store.model.model import Model
from model_store.store import Store
from nash.cli.main import build
from nash.measuring.metrics import METRICS
from nash.modeling.folders import load_dense, load_tokenizer
from server.engine.capabilities import speed_order
from server.engine.interface.config import EngineConfig
from tests.nash.command_line import PROGRAM, nash
from tests.nash.tiny_training import build_task_model, task_rows

# `nash loadtest` becomes another process, whose options those of its help are.
COMMANDS = sorted(set(get_command(build()).commands) - {"loadtest"})  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_task_model(tmp_path_factory.mktemp("model") / "m", dropout=0.0)


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_help_is_light() -> None:
    """All help pages in one process, which imports neither torch nor what needs it."""
    assert {"finetune", "prune", "evaluate", "bench", "serve", "models", "demo"} <= set(COMMANDS)
    program = f"""
import contextlib, io, sys
sys.argv = ["nash"]
from nash.cli.main import main
for arguments in [[], *([name] for name in {COMMANDS!r})]:
    sys.argv = ["nash", *arguments, "--help"]
    page = io.StringIO()
    with contextlib.redirect_stdout(page):
        try:
            main()
        except SystemExit as end:
            assert end.code == 0, arguments
    assert "Usage: nash " + " ".join(arguments) in page.getvalue(), page.getvalue()
print(sorted({{"torch", "transformers", "safetensors", "fastapi", "accelerate"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments", [["prun"], ["prune", "--speeed", "3"], ["evaluate", "./m"], ["prune", "--max-steps", "0"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    outcome = nash(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyError("surprise"), "KeyError: 'surprise' (this is a bug in nash"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
            "not enough memory",
        ),
        (MemoryError(), "not enough memory"),
    ],
)
def test_what_nobody_has_foreseen_is_one_line(
    error: Exception, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("nash.preflight.check_evaluate", fail)
    arguments = ["evaluate", "./m", "--data", tmp_path / "rows.jsonl"]
    outcome = nash(*arguments)
    assert outcome.code == 1
    assert says in outcome.err
    assert outcome.err.count("\n") == 1
    assert "Traceback" in nash("--debug", *arguments).err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    arguments = ["models", "show", "absent", "--store", tmp_path]
    plain, debug = nash(*arguments), nash("--debug", *arguments)
    assert (plain.code, debug.code) == (2, 2)
    assert plain.err.startswith("error: ")
    assert len(plain.err.splitlines()) <= 2
    assert "Traceback" in debug.err


@torch.inference_mode()
def greedy(model_dir: Path, sources: list[str], max_new_tokens: int) -> list[str]:
    """What transformers answers."""
    model, tokenizer = load_dense(Model.open(model_dir)).eval(), load_tokenizer(model_dir)
    answers = []
    for source in sources:
        ids = torch.tensor([tokenizer(source).input_ids])
        output = model.generate(ids, do_sample=False, max_new_tokens=max_new_tokens)
        answers.append(tokenizer.decode(output[0], skip_special_tokens=True))
    return answers


def test_evaluate(model_dir: Path, tmp_path: Path) -> None:
    """Against transformers' answers: rows whose target is the model's own answer are right, in the rows' order."""
    sources = [row.source for row in task_rows(6)]
    answers = greedy(model_dir, sources, 8)
    targets = [answer or "none" for answer in answers[:4]] + ["zz", "zz"]
    right = sum(target == answer for target, answer in zip(targets, answers, strict=True))
    assert right >= 3
    rows = [{"source": s, "target": t} for s, t in zip(sources, targets, strict=True)]
    data = write_rows(tmp_path / "test.jsonl", rows)
    arguments = ["evaluate", f"{model_dir}/", "--max-new-tokens", 8, "--store", tmp_path / "store", "--json"]
    document = nash(*arguments, "--data", data).document()
    assert document.keys() == {"ref", "n", "metrics", "dtype", "dtype_why", "device"}
    assert (document["ref"], document["n"], document["dtype"]) == (f"{model_dir}/", 6, "float32")
    assert document["metrics"] == {"exact_match": pytest.approx(100 * right / 6)}
    assert nash(*arguments, "--data", tmp_path, "--split", "test").document() == document
    phonemes = nash(*arguments, "--data", data, "--metric", "phonemes").document()
    assert phonemes["metrics"] == pytest.approx(METRICS["phonemes"](answers, [[t] for t in targets]))


def test_evaluate_a_reference(model_dir: Path, tmp_path: Path) -> None:
    Store(tmp_path / "store").publish("rev", model_dir, alias="dense")
    data = write_rows(tmp_path / "rows.jsonl", [{"source": "abc", "target": "cba"}])
    arguments = ["evaluate", "rev@dense", "--data", data, "--store", tmp_path / "store", "--max-new-tokens", 4]
    assert nash(*arguments, "--json").document()["ref"] == "rev@dense"
    people = nash(*arguments)
    assert (people.code, "exact match" in people.out) == (0, True)


def test_evaluate_keeps_what_auto_is_chosen_by(model_dir: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.publish("rev", model_dir, alias="dense")
    [answer] = greedy(model_dir, ["abc"], 4)
    data = write_rows(tmp_path / "rows.jsonl", [{"source": "abc", "target": answer or "none"}])
    fastest = speed_order(EngineConfig())[0]
    arguments = ["evaluate", "rev@dense", "--data", data, "--store", store.root, "--max-new-tokens", 4]
    before = nash(*arguments, "--json").document()
    assert before["dtype"] == "float32"
    first = nash(*arguments, "--dtype", fastest, "--record", "--json").document()
    assert first["recorded"]
    if fastest != "float32":
        assert first["finding"] == "no record in float32 to compare with"
        nash(*arguments, "--dtype", "float32", "--record", "--json").document()
    again = nash(*arguments, "--dtype", fastest, "--record")
    assert again.out.splitlines()[-1].startswith(f"{fastest}: already recorded, and the first record is kept; ")
    kept = {record.dtype: record for record in store.quality("rev")}
    assert kept.keys() == {fastest, "float32"}
    assert (kept[fastest].split, kept[fastest].rows, kept[fastest].max_new_tokens) == ("rows", 1, 4)
    holds = kept[fastest].holds(kept["float32"])
    assert nash(*arguments, "--json").document()["dtype"] == (fastest if holds else "float32")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--dtype", "float8"], "dtype 'float8' is not supported: use one of auto, float32, "),
        (["--dtype", "int8", "--record"], "--record keeps a figure beside a version in the store"),
        (["--split", "nope"], "nope.jsonl"),
        (["--metric", "rouge"], "rouge"),
        (["--max-source-tokens", "1000000000000000000000000000000"], "max-source-tokens"),
    ],
)
def test_evaluate_refuses(model_dir: Path, tmp_path: Path, flags: list[str], says: str) -> None:
    write_rows(tmp_path / "test.jsonl", [{"source": "abc", "target": "cba"}])
    outcome = nash("evaluate", f"{model_dir}/", "--data", tmp_path, "--store", tmp_path / "store", *flags)
    assert outcome.code == 2, outcome.err
    assert says in outcome.err
    assert "Traceback" not in outcome.err


def test_finetune(model_dir: Path, tmp_path: Path) -> None:
    rows = [{"source": r.source, "target": r.targets[0]} for r in task_rows(12)]
    write_rows(tmp_path / "rows.jsonl", rows)
    recipe = tmp_path / "tune.toml"
    recipe.write_text(
        f"tokenizer = {str(model_dir)!r}\n"
        "[shape]\nd_model = 8\nnum_heads = 2\nd_kv = 4\nd_ff = 8\nencoder_layers = 1\ndecoder_layers = 1\n"
        '[data]\ntrain = "rows.jsonl"\nvalidation = "rows.jsonl"\nmax_target_tokens = 16\nmax_source_tokens = 16\n'
        "[training]\nmax_steps = 2\nbatch_size = 4\n"
    )
    unwritable = nash("finetune", recipe, "--out", tmp_path / "out", "--store", recipe, "--name", "rev")
    assert unwritable.code != 0
    assert "is a file: give the folder of a store" in unwritable.err
    assert not (tmp_path / "out" / "model").exists(), "told before there is any training"
    arguments = ["finetune", recipe, "--out", tmp_path / "out", "--store", tmp_path / "store", "--json"]
    endless = Path(shutil.copytree(model_dir, tmp_path / "endless"))
    document = json.loads((endless / "tokenizer.json").read_text())
    (endless / "tokenizer.json").write_text(json.dumps(document | {"post_processor": None}))
    text = recipe.read_text()
    recipe.write_text(text.replace(str(model_dir), str(endless)))
    refused = nash(*arguments)
    assert refused.code == 2
    assert "ends no target with" in refused.err
    recipe.write_text(text)  # the folder is still free for another recipe
    outside = nash(*arguments).document()
    assert outside["ref"] == str(tmp_path / "out" / "model")
    assert (outside["digest"], outside["pruned"], outside["speedup"]) == (None, None, None)
    document = nash(*arguments, "--name", "rev").document()
    assert document["ref"] == "rev@dense"
    assert document["dense"] == outside["dense"], "trained or measured again"
    stored = Store(tmp_path / "store").resolve("rev@dense")
    assert stored.digest == document["digest"]
    assert stored.manifest.spec.parameters == document["dense"]["parameters"]
    refused = nash(*arguments, "--name", "Rev")
    assert refused.code == 2
    assert "Rev" in refused.err


def test_the_demonstration_is_for_the_projects_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused = nash("demo", "--no-serve")
    assert refused.code == 2
    assert refused.err.splitlines() == [
        "error: examples/g2p/demo/prune.toml is not here: run `nash demo` in the project's folder"
    ]


def test_the_program_of_a_process_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "models", "show", "Bad"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
