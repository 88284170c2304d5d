"""Progress where there is no terminal: a line in time, whatever the work is doing."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from nash.run import progress
from nash.run.progress import Stage, duration
from nash.training.progress import TrainingProgress
from tests.nash.tiny_training import build_task_model, finetune_phase


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), highlight=False, markup=False)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)


def test_what_is_promised_is_kept() -> None:
    assert progress.PLAIN_LINE_EVERY_S < 10


def test_lines_come_while_a_single_unit_takes_long(console: Console) -> None:
    with Stage("working", console, 2, unit="steps", every_s=0.05):
        deadline_s = time.monotonic() + 10
        while len(lines(console)) < 4 and time.monotonic() < deadline_s:
            time.sleep(0.01)
    assert lines(console)[:4] == ["working: 0/2 steps"] * 4


def test_what_is_left_follows_from_what_this_process_did(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    stage = Stage("training", console, 100, done=40, unit="steps")
    assert stage.line() == "training: 40/100 steps"
    clock.now_s += 30
    assert stage.line() == "training: 40/100 steps", "nothing has been done yet to tell the speed from"
    stage.update(50, note="loss 1.5")
    assert stage.line() == "training: 50/100 steps, about 2 min left (loss 1.5)"  # 10 in 30 s, 50 to go
    stage.update(100)
    assert stage.line() == "training: 100/100 steps, took 30 s (loss 1.5)"


def test_work_of_unknown_size_says_how_long_it_has_taken(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    stage = Stage("reading the data", console)
    assert stage.line() == "reading the data"
    clock.now_s += 12
    assert stage.line() == "reading the data: 12 s so far"
    stage.update(3, 6)  # its size came to be known
    assert stage.line() == "reading the data: 3/6, about 12 s left"


def test_begin_and_end_are_said_once(console: Console) -> None:
    with Stage("evaluating", console, 3, unit="rows") as stage:
        stage.update(3)
    assert lines(console) == ["evaluating: 0/3 rows", "evaluating: 3/3 rows, took 0 s"]


def test_an_error_ends_the_lines(console: Console) -> None:
    with pytest.raises(ValueError, match="broken"), Stage("evaluating", console, 3, every_s=0.01):
        raise ValueError("broken")
    said = len(lines(console))
    time.sleep(0.05)
    assert len(lines(console)) == said, "the lines go on after the stage"
    assert "evaluating: 3/3" not in "\n".join(lines(console))


@pytest.mark.parametrize("total", [3, None])
@pytest.mark.parametrize("steady", [False, True])
def test_in_a_terminal_there_is_a_live_bar(total: int | None, steady: bool) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Stage("evaluating", terminal, total, unit="rows", steady=steady) as stage:
        stage.update(2)
    assert isinstance(terminal.file, io.StringIO)
    drawn = terminal.file.getvalue()
    assert "evaluating" in drawn
    assert ("2/3" in drawn) == (total == 3)
    assert drawn.endswith("\x1b[?25h") or "\x1b[?25h" in drawn, "the cursor is not shown again"


def test_training_tells_steps_and_validation(console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str | None] = []
    update = Stage.update

    def noted(self: Stage, done: int, total: int | None = None, note: str | None = None) -> None:
        notes.append(note)
        update(self, done, total, note)

    monkeypatch.setattr(Stage, "update", noted)
    shown = TrainingProgress("final", console)
    model = build_task_model(tmp_path / "model", dropout=0.0)
    finetune_phase(model, tmp_path / "out", shown, max_steps=3, batch_size=8).run()
    said = lines(console)
    assert said[0] == "final: 0/3 steps"
    assert said[-1].startswith("final: 3/3 steps, took ")
    assert "loss" in said[-1]
    assert any(line.startswith("final: step 2, validation loss ") for line in said)
    assert "validating, batch 1" in notes
    assert shown.stage is None


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "0 s"), (119, "119 s"), (120, "2 min"), (3600, "1 h 0 min"), (9000, "2 h 30 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
