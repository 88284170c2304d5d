"""`nash models` as a user and as a script see it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from model_store.errors import InvalidRequestError, NotFoundError
from model_store.model.model import INT4, Model
from model_store.store import Store
from nash.cli.models import app
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from tests.tiny_models import build_tiny_t5

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_t5(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def run(root: Path) -> Run:
    """Run a command with `--json` and return its document."""

    def run_json(*arguments: object, exit_code: int = 0) -> Any:
        result = CliRunner().invoke(app, [*map(str, arguments), "--store", str(root), "--json"])
        assert result.exit_code == exit_code, result.output
        assert result.stdout.isascii()
        return json.loads(result.stdout)

    return run_json


def refused(root: Path, *arguments: object) -> BaseException:
    result = CliRunner().invoke(app, [*map(str, arguments), "--store", str(root)])
    assert result.exception is not None
    assert result.stdout == ""
    return result.exception


def test_publish(run: Run, model: Path) -> None:
    first = run("publish", "g2p", model, "--alias", "dense")
    assert first.keys() == {"name", "version", "digest", "created"}
    assert (first["name"], first["version"], first["created"]) == ("g2p", 1, True)
    assert run("publish", "g2p", model) == first | {"created": False}
    child = run("publish", "g2p", model, "--kind", "pruned", "--parent", "g2p@dense", "--alias", "pruned")
    assert child["version"] == 2
    assert run("show", "g2p@pruned")["parent"] == first["digest"]


def test_ls_and_show(run: Run, model: Path, root: Path) -> None:
    assert run("ls") == []
    Store(root).publish("g2p", model, alias="dense", metrics={"per": 9.0})
    [row] = run("ls")
    digest, created_at = row.pop("digest"), row.pop("created_at")
    assert row == {
        "name": "g2p",
        "version": 1,
        "kind": "dense",
        "aliases": ["default", "dense"],
        "parameters": 71456,
        "bytes": 285824,
        "parent": None,
        "metrics": {"per": 9.0},
    }
    shown = run("show", "g2p")
    details = {"digest", "created_at", "files", "spec", "lineage", "licence", "measured_on", "measurements"}
    assert shown.keys() == row.keys() | details
    assert (shown["digest"], shown["created_at"]) == (digest, created_at)
    assert {file["path"] for file in shown["files"]} == {path.name for path in model.iterdir()}
    assert shown["spec"]["decoder_layers"] == 3
    assert shown["lineage"]["recipe"] == {}


def test_tag(run: Run, model: Path) -> None:
    run("publish", "g2p", model)
    assert run("tag", "g2p:1", "live")["aliases"] == ["default", "live"]
    assert run("show", "g2p@live")["version"] == 1


def test_verify(run: Run, model: Path, root: Path) -> None:
    run("publish", "g2p", model)
    assert run("verify") == {"problems": []}
    [entry] = [file for file in run("show", "g2p")["files"] if file["path"] == "model.safetensors"]
    (root / "blobs/sha256" / entry["sha256"][:2] / entry["sha256"]).unlink()
    for arguments in (["verify"], ["verify", "g2p"]):
        [problem] = run(*arguments, exit_code=1)["problems"]
        assert (problem["ref"], problem["file"]) == ("g2p:1", "model.safetensors")


def test_bad_requests(model: Path, root: Path, tmp_path: Path) -> None:
    assert isinstance(refused(root, "publish", "G2P", model), InvalidRequestError)
    assert isinstance(refused(root, "publish", "g2p", tmp_path), InvalidRequestError)
    assert isinstance(refused(root, "publish", "g2p", model, "--parent", "none"), NotFoundError)
    for command in (["show", "none"], ["tag", "none", "x"], ["verify", "none"]):
        assert isinstance(refused(root, *command), NotFoundError)
    assert CliRunner().invoke(app, ["publish", "g2p", str(model), "--kind", "sparse"]).exit_code == 2
    assert not root.exists()


def test_store_from_the_environment(model: Path, root: Path) -> None:
    environment = {"NASH_STORE": str(root)}
    result = CliRunner().invoke(app, ["publish", "g2p", str(model)], env=environment)
    assert result.exit_code == 0
    assert Store(root).resolve("g2p").version == 1


def test_human_output(model: Path, root: Path) -> None:
    def text(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--store", str(root)], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "g2p:1" in text("publish", "g2p", str(model), "--alias", "dense")
    assert "already stored" in text("publish", "g2p", str(model))
    assert "0.07 M" in text("ls")
    shown = text("show", "g2p")
    assert "model.safetensors" in shown
    assert "encoder_sparsity" in shown
    assert "g2p@live is now g2p:1" in text("tag", "g2p", "live")
    assert "every file" in text("verify")


def test_nothing_heavy_is_imported() -> None:
    """Under the `nash` script, that is; `import nash` from elsewhere registers the compact model's class."""
    code = (
        "import sys; sys.argv = ['nash']; import nash.cli.models; print(*{'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_publish_calibrated(run: Run, model: Path, root: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": word, "answer": word[::-1]}) + "\n" for word in ("abc", "de", "fghi")))
    columns = ("--source-column", "text", "--target-column", "answer")
    done = run("publish", "g2p", model, "--calibrate-int4", data, *columns)
    assert run("publish", "g2p", model, "--calibrate-int4", data, *columns) == done | {"created": False}
    assert {file["path"] for file in run("show", "g2p")["files"]} == {p.name for p in model.iterdir()} | {INT4}
    engine = Engine.load(Model.open(Store(root).checkout("g2p")), EngineConfig(dtype="int4", slots=1))
    [answer] = engine.generate([[5, 6, 1]], GenerationParameters(max_new_tokens=3, ignore_eos=True))
    assert len(answer.tokens) == 3
    assert "column 'source' is missing" in str(refused(root, "publish", "g2p", model, "--calibrate-int4", data))
