"""The folder of a run: bound to its settings, and holding whole results only."""

import json
from pathlib import Path

import pytest

from nash.errors import RequestError
from nash.run.folder import RunFolder, read_json


def test_a_folder_belongs_to_its_settings(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    settings, inputs = {"seed": 0, "data": {"train": "a"}}, {"train": "0f"}
    with RunFolder(out, settings | {"seed": 7}, inputs):
        pass  # refused before anything was done: it leaves the folder to any other
    for _ in range(2):
        with RunFolder(out, settings, inputs) as run:
            run.bind()
    with pytest.raises(RequestError) as refusal:
        RunFolder(out, {"seed": 1, "data": {"train": "b"}}, inputs)
    assert str(out) in str(refusal.value)
    assert "data.train, seed differ" in str(refusal.value)
    assert "--out" in str(refusal.value)
    with pytest.raises(RequestError, match="more differ"):
        RunFolder(out, settings | {"more": 1}, inputs)
    with pytest.raises(RequestError, match=r"other inputs \(train differ\)"):
        RunFolder(out, settings, {"train": "1f"})
    assert json.loads((out / "settings.json").read_text())["seed"] == 0


PHASE = {"max_steps": 4, "epochs": 1.0, "validation_rows": 5, "learning_rate": 0.1}


def bound(path: Path, **changes: object) -> RunFolder:
    """The folder of a run whose phase was, and the same with changes."""
    with RunFolder(path, {"final": PHASE}, {}) as run:
        run.bind()
    return RunFolder(path, {"final": PHASE | changes}, {}, extensible=True)


def test_what_changes_no_result_may_change(tmp_path: Path) -> None:
    with bound(tmp_path, validation_rows=7, checkpoint_steps=3) as run:
        assert run.extended == []
        run.bind()
    assert json.loads((tmp_path / "settings.json").read_text())["final"]["validation_rows"] == 7


def test_the_rows_of_a_step_may_be_split_otherwise(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "alone", {"batch_size": 8}, {}) as run:
        run.bind()
    with pytest.raises(RequestError, match="batch_size differ"):
        RunFolder(tmp_path / "alone", {"batch_size": 4}, {})
    split = {"batch_size": 8, "gradient_accumulation": 2}
    with RunFolder(tmp_path, {"final": PHASE | split}, {}) as run:
        run.bind()
    smaller = {"batch_size": 4, "gradient_accumulation": 4}
    with RunFolder(tmp_path, {"final": PHASE | smaller}, {}) as run:
        run.bind()
    with pytest.raises(RequestError, match=r"other settings \(final\.batch_size differ\)"):
        RunFolder(tmp_path, {"final": PHASE | smaller | {"batch_size": 8}}, {})


def test_training_may_become_longer(tmp_path: Path) -> None:
    with bound(tmp_path / "longer", max_steps=5, epochs=2.0) as run:
        assert run.extended == ["final.epochs", "final.max_steps"]
    refused: list[dict[str, float | None]]
    refused = [{"max_steps": 3}, {"max_steps": None}, {"max_steps": 5, "learning_rate": 0.2}]
    for number, changes in enumerate(refused):
        with pytest.raises(RequestError, match=rf"other settings \(final\.{list(changes)[-1]} differ\)"):
            bound(tmp_path / str(number), **changes)
    with bound(tmp_path / "point") as run:
        run.bind()
    with pytest.raises(RequestError, match=r"final\.epochs differ"):
        RunFolder(tmp_path / "point", {"final": PHASE | {"epochs": 2.0}}, {})


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RequestError, match="is not a folder, or lies below a file"):
            RunFolder(path, {}, {})
        assert read_json(path / "results.json") is None


def test_results(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, {}, {})
    assert run.read_json("results.json") is None
    run.write_json("results.json", {"n": 3})
    assert run.read_json("results.json") == {"n": 3}


def test_a_result_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, {}, {})
    run.write_json("results.json", {"n": 3})
    with pytest.raises(TypeError):
        run.write_json("results.json", {"n": 4, "bad": object()})
    assert run.read_json("results.json") == {"n": 3}
    (tmp_path / ".other.json.partial").write_text('{"n": ')  # as a kill leaves it
    assert run.read_json("other.json") is None


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path, {}, {}), pytest.raises(RequestError, match="another run is at work in"):
        RunFolder(tmp_path, {}, {})
    with RunFolder(tmp_path, {}, {}) as run:
        run.bind()
        assert run.read_json("settings.json") == {}


def test_a_torn_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("")
    with pytest.raises(RequestError, match=r"settings\.json is damaged"):
        RunFolder(tmp_path, {}, {})
