"""What the operator's benchmark says where there is nothing to compare."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import operator_view

TWO = ["--model", "g2p@dense", "--model", "g2p@pruned"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has a workload and a folder that is in use; the machine has a prometheus, and starting anything is an error."""
    (tmp_path / "workload.jsonl").write_text('{"source": "abc"}\n')
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "summary.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(operator_view, "Server", None)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["operator_view", *arguments])
    with pytest.raises(SystemExit) as ended:
        operator_view.main()
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "g2p@dense"], "--model g2p@dense: give two variants of one model or more"),
        (["--model", "g2p@dense"] * 2, "--model g2p@dense g2p@dense: give two variants"),
        (["--model", "g2p@dense", "--model", "titles@pruned"], "give two variants of one model"),
        ([*TWO, "--workload", "none.jsonl"], "--workload none.jsonl is no file"),
        ([*TWO, "--out", "used"], "--out used is in use: give a folder that is new or empty"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(
    arguments: list[str], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--workload", "workload.jsonl", "--rate", "4", "--out", "new", *arguments]
    assert run(monkeypatch, *given) == 2
    assert said in capsys.readouterr().err


def test_a_missing_prometheus_is_said_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert run(monkeypatch, *TWO, "--workload", "workload.jsonl", "--rate", "4", "--out", "new") == 2
    assert "apt-get install prometheus" in capsys.readouterr().err


def test_a_load_test_that_is_refused_is_no_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Watching:
        def wait_for(self, expression: str) -> None:
            assert expression == "nash_requests_running"

    @contextmanager
    def started(*_: Any) -> Iterator[Watching]:
        yield Watching()

    monkeypatch.setattr(operator_view, "Server", started)
    monkeypatch.setattr(operator_view, "Prometheus", started)
    monkeypatch.setenv("PYTHONPATH", str(Path(operator_view.__file__).parents[1]))
    code = run(monkeypatch, *TWO, "--workload", "workload.jsonl", "--rate", "0", "--out", "new")
    assert code == "error: the load test has no summary, as it says above: nothing to compare"


def test_a_variant_without_figures_is_named() -> None:
    variant = {"ref": "g2p@pruned", "name": "pruned"}
    summary: dict[str, Any] = {"speedups": {"by_ref": {"g2p@pruned": {"latency": None}}}}
    seen = {"Speed-up, mean": {"pruned": 2.0}, "Speed-up, p95": {"dense": 1.0}}
    with pytest.raises(SystemExit, match="Speed-up, p95 and the load test gave no figure for g2p@pruned"):
        operator_view._beside(variant, summary, seen)
