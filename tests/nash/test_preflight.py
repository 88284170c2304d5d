"""Wrong requests are refused before torch and transformers, whose import takes seconds, are loaded."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from model_store.model.model import Model
from model_store.store import Store
from nash.cli.main import build
from nash.preflight import check_prune
from nash.recipes.recipe import PruneRecipe, build_recipe
from nash.run.lineage import portable
from server.engine.interface.config import SETTINGS
from server.settings import ModelRequest
from tests.nash.command_line import nash
from tests.tiny_families import CASES, build_tiny
from tests.tiny_models import build_tiny_t5, build_tokenizer

ROOT = Path(__file__).parents[2]

PROGRAM = """
import contextlib, io, json, sys
sys.argv[0] = "nash"
from nash.cli.main import main
for arguments in json.load(sys.stdin):
    sys.argv[1:] = arguments
    error, code = io.StringIO(), None
    with contextlib.redirect_stderr(error):
        try:
            main()
        except SystemExit as end:
            code = end.code
    heavy = sorted({"torch", "transformers", "accelerate", "datasets"} & set(sys.modules))
    print(json.dumps([code, error.getvalue(), heavy]))
"""

ROW = '{"source": "abc", "target": "cba"}\n'
FLAGS = ["--train", "rows.jsonl", "--eval", "rows.jsonl", "--name", "m", "--model", "./model"]
RECIPE = '[data]\ntrain = "rows.jsonl"\nvalidation = "rows.jsonl"\nmax_source_tokens = 16\nmax_target_tokens = 16\n'
PRUNE_RECIPE = 'model = "./model"\nname = "m"\n' + RECIPE
FINETUNE_RECIPE = 'model = "./model"\n[training]\n' + RECIPE
SHAPE = "[shape]\nd_model = 8\nnum_heads = 2\nd_kv = 4\nd_ff = 8\nencoder_layers = 1\ndecoder_layers = 1\n[training]\n"

# A command line, and what the refusal must say.
REFUSED: list[tuple[list[str], str]] = [
    (["prune"], "nothing to prune"),
    (["prune", "--speeed", "3"], "--speeed"),
    (["prune", "absent.toml"], "absent.toml cannot be read"),
    (["prune", "torn.toml"], "not valid TOML"),
    (["prune", "unknown.toml"], "unknown key 'modell'"),
    (["prune", *FLAGS, "--metric", "rouge"], "rouge"),
    (["prune", *FLAGS, "--dtype", "float8"], "float8"),
    (["prune", *FLAGS, "--alias", "dense"], "the dense model's"),
    (["prune", *FLAGS, "--name", "M"], "model name 'M'"),
    (["prune", *FLAGS, "--train", "absent.jsonl"], "absent.jsonl cannot be read"),
    (["prune", *FLAGS, "--train", "bad.jsonl"], "bad.jsonl, line 2"),
    (["prune", *FLAGS, "--eval", "absent.parquet"], "absent.parquet cannot be read"),
    (["prune", *FLAGS, "--eval", "hub:nothing"], "does not name data on the hub"),
    (["prune", *FLAGS, "--source-column", "text"], "column 'text' is missing"),
    (["prune", *FLAGS, "--metric", "correlation"], "is not a number"),
    (["prune", *FLAGS, "--decoder-layers", "9"], "decoder_layers 9 is out of range"),
    (["prune", *FLAGS, "--model", "./absent"], "./absent is not a folder"),
    (["prune", *FLAGS, "--model", "./weightless"], "has no model.safetensors"),
    (["prune", *FLAGS, "--model", "model"], "write ./model"),
    (["prune", *FLAGS, "--model", "absent@dense"], "absent"),
    (["prune", *FLAGS, "--out", "rows.jsonl"], "rows.jsonl is not a folder"),
    (["prune", *FLAGS, "--out", "model/run"], "lies in the model's own folder"),
    (["prune", *FLAGS, "--min-quality", "970"], "--min-quality '970' is not a share"),
    (["prune", *FLAGS, "--out", "other"], "other settings (seed differ)"),
    (["prune", *FLAGS, "--out", "busy"], "another run is at work in busy"),
    (["finetune", "absent.toml"], "absent.toml cannot be read"),
    (["finetune", "unknown.toml"], "unknown key 'modell'"),
    (["finetune", "finetune.toml", "--name", "M"], "model name 'M'"),
    (["finetune", "finetune.toml", "--out", "busy"], "another run is at work in busy"),
    (["finetune", "weightless.toml"], "has no model.safetensors"),
    (["finetune", "shape.toml"], "has no tokenizer.json"),
    (["evaluate", "./model"], "--data"),
    (["evaluate", "./model", "--data", "absent.jsonl"], "absent.jsonl cannot be read"),
    (["evaluate", "./model", "--data", "bad.jsonl"], "bad.jsonl, line 2"),
    (["evaluate", "./model", "--data", "rows.jsonl", "--metric", "rouge"], "rouge"),
    (["evaluate", "./model", "--data", "rows.jsonl", "--dtype", "float8"], "float8"),
    (["evaluate", "./model", "--data", "rows.jsonl", "--dtype", "int4"], "--calibrate-int4"),
    (["evaluate", "./model", "--data", "rows.jsonl", "--threads", "1025"], "threads is 1025"),
    (["evaluate", "./weightless", "--data", "rows.jsonl"], "has no model.safetensors"),
    (["evaluate", "absent", "--data", "rows.jsonl"], "absent"),
    (["bench", "absent@pruned"], "absent"),
    (["bench", "./weightless"], "has no model.safetensors"),
    (["bench", "./model", "--dtype", "float8"], "float8"),
    (["bench", "./model", "--dtype", "int4"], "--calibrate-int4"),
    (["bench", "./model", "--threads", "1025"], "threads is 1025"),
    (["export", "./model", "--out", "other"], "other already exists"),
    (["export", "absent", "--out", "new"], "absent"),
    (["export", "./weightless", "--out", "new"], "has no model.safetensors"),
    (["sweep", "absent.toml"], "absent.toml cannot be read"),
    (["sweep", "sweep.toml", "--publish", "some"], "some"),
    (["sweep", "sweep.toml"], "point nash-d9-s0.3-seed0: decoder_layers 9 is out of range"),
    (["demo", "--port", "99999"], "--port"),
    (["demo"], "examples/g2p/demo/prune.toml is not here"),
    (["models", "show", "absent"], "absent"),
    (["models", "publish", "m", "./weightless"], "has no model.safetensors"),
    (["models", "publish", "M", "./model"], "model name 'M'"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preflight")
    build_tiny_t5(folder / "model")
    shutil.copytree(folder / "model", folder / "weightless")
    (folder / "weightless" / "model.safetensors").unlink()
    files = {
        "rows.jsonl": ROW * 3,
        "bad.jsonl": ROW + '{"source": "abc"}\n',
        "torn.toml": "[data\n",
        "unknown.toml": 'modell = "./model"\n' + PRUNE_RECIPE,
        "prune.toml": PRUNE_RECIPE,
        "finetune.toml": FINETUNE_RECIPE,
        "weightless.toml": FINETUNE_RECIPE.replace("./model", "./weightless"),
        "shape.toml": 'tokenizer = "busy"\n' + SHAPE + RECIPE,
        "sweep.toml": 'recipe = "prune.toml"\ndecoder_layers = [1, 9]\n',
        "other/settings.json": "",
        "busy/.lock": "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_refused_before_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one process: what one of them imported would be seen in all that come after it."""
    monkeypatch.chdir(folder)
    keys: dict[str, Any] = {"model": "./model", "name": "m", "data.train": str(folder / "rows.jsonl")}
    keys |= {"seed": 7, "pruning.decoder_layers": 2}  # half of the layers, as without a word about the shape
    recipe = build_recipe(PruneRecipe, {}, "", folder, keys | {"data.validation": str(folder / "rows.jsonl")})
    (folder / "other" / "settings.json").write_text(json.dumps(portable(recipe)))
    with (folder / "busy" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=json.dumps([arguments for arguments, _ in REFUSED]),
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(REFUSED), done.stderr
    for (arguments, says), (code, error, heavy) in zip(REFUSED, answers, strict=True):
        assert (code, heavy) == (2, []), f"{arguments}: {error}"
        assert says in " ".join(error.replace("│", " ").split()), arguments
    assert {path.name for path in folder.iterdir()} & {"store", "runs", "new"} == set(), "a refusal leaves nothing"


def test_lengths_that_are_not_given_follow_the_model(tmp_path: Path) -> None:
    build_tiny(CASES["bart"], tmp_path / "model")
    build_tokenizer().save(str(tmp_path / "model" / "tokenizer.json"))
    positions = Model.open(tmp_path / "model").spec.max_positions
    assert positions is not None
    assert positions < 256
    (tmp_path / "rows.jsonl").write_text(ROW)
    rows = str(tmp_path / "rows.jsonl")
    keys = {"model": str(tmp_path / "model"), "name": "m", "data.train": rows, "data.validation": rows}
    given = keys | {"data.max_target_tokens": 8}
    checked = check_prune(build_recipe(PruneRecipe, {}, "", tmp_path, given), tmp_path / "out", Store(tmp_path / "s"))
    assert (checked.data.max_source_tokens, checked.data.max_target_tokens) == (positions, 8)
    arguments = [f"--{key.removeprefix('data.').replace('validation', 'eval')}={value}" for key, value in keys.items()]
    refused = nash("prune", *arguments, "--max-source-tokens", positions + 1, "--out", tmp_path / "out")
    assert refused.code == 2
    assert f"the model's {positions} positions" in refused.err
    (tmp_path / "rows.jsonl").write_text(json.dumps({"source": "a b " * positions, "target": "a"}) + "\n")
    evaluated = nash("evaluate", keys["model"], "--data", rows, "--max-new-tokens", 2, "--store", tmp_path / "s")
    assert evaluated.code == 0, evaluated.err


def test_every_flag_has_a_help_text() -> None:
    pending: list[tuple[tuple[str, ...], Any]] = [((), get_command(build()))]
    silent = []
    while pending:
        path, command = pending.pop()
        if isinstance(command, TyperGroup):
            pending += [((*path, name), each) for name, each in command.commands.items()]
        for parameter in command.params:
            if not getattr(parameter, "help", None) and not getattr(parameter, "hidden", False):
                silent.append((*path, parameter.name))
    assert silent == []


def test_prune_has_the_flags_of_evaluate() -> None:
    group = get_command(build())
    assert isinstance(group, TyperGroup)
    flags = {name: {flag for each in group.commands[name].params for flag in each.opts} for name in group.commands}
    about_data = {"--source-column", "--target-column", "--prefix", "--max-source-tokens", "--metric", "--threads"}
    assert about_data <= flags["evaluate"]
    assert about_data | {"--max-target-tokens", "--learning-rate", "--batch-size"} <= flags["prune"]


def test_help_names_defaults_and_choices() -> None:
    group = get_command(build())
    assert isinstance(group, TyperGroup)
    texts = {each.name: str(getattr(each, "help", "")) for each in group.commands["prune"].params}
    assert texts["encoder_sparsity"].endswith("Default: 0.3.")
    assert texts["learning_rate"].endswith("Default: 0.0001.")
    assert texts["target_columns"].endswith("Default: target.")
    assert "question_answering" in texts["metric"]
    assert "int8" in texts["dtype"]


def test_serve_names_the_keys_that_the_server_takes() -> None:
    with pytest.raises(Exception, match="use key=value with one of ") as refusal:
        ModelRequest.parse("m,surprise=1")
    assert str(refusal.value).partition("one of ")[2].split(", ") == list(SETTINGS)
    assert set(SETTINGS) <= set(re.findall(r"\w+", nash("serve", "--help").out))
