"""Measurements in stages: nothing is lost, nothing is measured twice, and no stage stops the next."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import staged
from benchmarks.gpu.staged import Stage, open_document, run_stages, write_document
from tests.benchmarks import made_up_stages as made_up


def stage(work: Any, seconds: float = 30) -> Stage:
    return Stage(name=work.__name__, seconds=seconds, work=work)


def run(folder: Path, *stages: Stage, seconds: float = 60) -> dict[str, Any]:
    """One call of the run with the same file; what the file holds then."""
    path = folder / "out.json"
    document = open_document(path, "this code", {"cores": 2})
    run_stages(stages, folder / "log", document, path, time.monotonic() + seconds)
    written: dict[str, Any] = json.loads(path.read_text())
    assert written == document
    assert not list(folder.glob("*.part"))
    return dict(written["stages"])


def log(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def test_what_is_done_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = run(tmp_path, stage(made_up.quick))
    assert stages["quick"]["status"] == "done"
    assert stages["quick"]["parts"] == {"one": "quick one", "two": "quick two"}
    assert "quick: begins, at most 30 s\nquick: done after " in capsys.readouterr().out
    again = run(tmp_path, stage(made_up.quick), stage(made_up.shared))
    assert again["quick"] == stages["quick"]
    assert again["shared"]["parts"] == {"first": "made for first", "second": "made for second"}
    assert log(tmp_path) == ["quick one", "quick two", "made", "first", "second"]
    assert "quick: was done before\n" in capsys.readouterr().out


def test_a_failing_part_is_recorded_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = run(tmp_path, stage(made_up.faulty), stage(made_up.quick))
    faulty = stages["faulty"]
    assert (faulty["status"], faulty["parts"]) == ("failed", {"before": "before", "after": "after"})
    assert faulty["failures"]["broken"]["error"] == "ValueError: broken is broken"
    assert "in fail" in "".join(faulty["failures"]["broken"]["traceback"])
    assert faulty["failures"]["no number"]["error"].startswith("ValueError: Out of range float values")
    assert stages["quick"]["status"] == "done"
    assert "  broken: ValueError: broken is broken\n" in capsys.readouterr().out
    again = run(tmp_path, stage(made_up.faulty), stage(made_up.quick))
    assert again["faulty"]["failures"].keys() == {"broken", "no number"}
    assert log(tmp_path) == ["before", "broken", "after", "quick one", "quick two", "broken"]


def test_what_cannot_be_made_ready_and_what_fails_outside_of_parts(tmp_path: Path) -> None:
    stages = run(tmp_path, stage(made_up.unmakable), stage(made_up.thrown), stage(made_up.impossible))
    assert stages["unmakable"]["failures"].keys() == {"first"}
    assert stages["unmakable"]["parts"] == {"apart": "apart"}
    assert stages["thrown"]["status"] == "failed"
    assert stages["thrown"]["parts"] == {"before": "before the end"}
    assert stages["thrown"]["failures"]["outside of any part"]["error"] == "KeyError: 'outside'"
    assert (stages["impossible"]["status"], stages["impossible"]["reason"]) == ("not run", "nothing to run it with")


def test_a_stage_whose_time_is_up_is_cut_short_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged, "LEAST_S", 0.0)
    run(tmp_path, stage(made_up.quick))  # so that the time is not spent on starting
    cut = run(tmp_path, stage(made_up.slow, seconds=0.7))["slow"]
    assert cut["status"] == "cut short"
    done = len(cut["parts"])
    assert 0 < done < 4
    assert cut["reason"] == f"the time was up before 'part {done}'"
    whole = run(tmp_path, stage(made_up.slow))["slow"]
    assert (whole["status"], whole["reason"], len(whole["parts"])) == ("done", "", 4)
    assert log(tmp_path)[2:] == [f"part {i}" for i in range(4)], "a part was measured twice"


def test_the_deadline_leaves_stages_out_which_come_first_the_next_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = run(tmp_path, stage(made_up.faulty), stage(made_up.quick), seconds=1)
    assert {name: entry["status"] for name, entry in stages.items()} == {"faulty": "not run", "quick": "not run"}
    assert stages["quick"]["reason"] == "the time was up"
    assert not (tmp_path / "log").exists()
    run(tmp_path, stage(made_up.faulty))
    capsys.readouterr()
    stages = run(tmp_path, stage(made_up.faulty), stage(made_up.quick))
    begun = [line for line in capsys.readouterr().out.splitlines() if ": begins" in line]
    assert [line.split(":")[0] for line in begun] == ["quick", "faulty"]
    late = run(tmp_path, stage(made_up.faulty), seconds=1)
    assert late["faulty"] == stages["faulty"], "what there is was given up"


def test_a_crash_and_a_hang_end_their_stage_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged, "GRACE_S", 0.2)
    monkeypatch.setattr(staged, "LEAST_S", 0.0)
    run(tmp_path, stage(made_up.crashing))
    stages = run(tmp_path, stage(made_up.hanging, seconds=4), stage(made_up.quick))
    crashing, hanging = stages["crashing"], stages["hanging"]
    assert (crashing["status"], crashing["parts"]) == ("failed", {"before": "before the crash"})
    assert crashing["reason"] == "its process died with exit code -9, at 'crash'"
    assert (hanging["status"], hanging["parts"]) == ("cut short", {"before": "before the hang"})
    assert hanging["reason"] == "killed 0 s after its time, at 'hang'"
    assert stages["quick"]["status"] == "done"
    beside = int(log(tmp_path)[0].removesuffix("quick one"))  # the last whole word before the next stage's notes
    assert not _runs(beside), "what the stage had started runs on"


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_the_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_document(path, {"figure": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_document(path, {"figure": 2, "other": float("inf")})
    assert json.loads(path.read_text()) == {"figure": 1}


@pytest.mark.parametrize("content", ['{"key": "other code", "stages": {}}', '{"key"', "[]", '{"figures": 3}'])
def test_a_file_of_anything_else_is_put_aside(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    (tmp_path / "out-1.json").write_text("of an earlier time")
    path.write_text(content)
    assert open_document(path, "this code", {}) == {"key": "this code", "environment": {}, "stages": {}}
    assert (tmp_path / "out-2.json").read_text() == content
    assert not path.exists()
    said = capsys.readouterr().out
    assert f"it is {tmp_path / 'out-2.json'} now" in said
    assert ("is of other code, another machine or other sizes" in said) == ("other code" in content)
