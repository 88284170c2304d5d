"""Sequence-level distillation (Kim and Rush, 2016): the student learns the teacher's own answers."""

import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from rich.console import Console

from model_store.model.model import Model
from nash.data.rows import Rows, TaskRow
from nash.measuring.assess import evaluation_config
from nash.measuring.evaluate import predict
from nash.recipes.recipe import DataRecipe
from nash.run.progress import Stage
from server.engine.interface.config import EngineConfig

FILE = "teacher_answers.jsonl"  # in the folder of the run or of its sweep: one text per row, in the rows' order
_CHUNK_ROWS = 2000  # rows written at once: an interruption loses at most these


def with_teacher_answers(
    rows: Rows, teacher: Model, data: DataRecipe, device: str, out: Path, console: Console
) -> Rows:
    """The rows with the answer of the `teacher`, on the device, as their only target.

    A row whose answer is empty keeps its targets. Answers are kept in `out`; those that are already there are not
    generated again.
    """
    there = _whole_lines(out / FILE)
    if there < len(rows):
        title = "the teacher answers the training rows"
        with Stage(title, console, len(rows), done=there, unit="rows") as stage:
            _answer(rows, there, teacher, evaluation_config(data, device), out / FILE, stage)
    return AnsweredRows(rows, out / FILE)


class AnsweredRows(Collection[TaskRow]):
    """Rows with the answers in a file as their targets; both are read anew on every walk."""

    def __init__(self, rows: Rows, file: Path) -> None:
        self._rows = rows
        self._file = file

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[TaskRow]:
        with self._file.open(encoding="ascii") as lines:
            for row, answer in zip(self._rows, map(json.loads, lines), strict=True):
                yield replace(row, targets=(answer,)) if answer.strip() else row

    def __contains__(self, row: object) -> bool:
        return any(row == each for each in self)


def _answer(rows: Rows, there: int, teacher: Model, config: EngineConfig, file: Path, stage: Stage) -> None:
    """Append the answers to all rows but the first `there` to the file."""
    left = islice(rows, there, None)
    while chunk := list(islice(left, _CHUNK_ROWS)):

        def watch(done: int, _: int, there: int = there) -> None:
            stage.update(there + done)

        made = predict(teacher, [row.source for row in chunk], config, watch)
        with file.open("a", encoding="ascii") as kept:
            kept.write("".join(json.dumps(answer) + "\n" for answer in made))
        there += len(made)


def _whole_lines(path: Path) -> int:
    """The number of answers in a file; an incomplete last line, left by a kill, is cut off."""
    if not path.exists():
        return 0
    lines = whole_bytes = 0
    with path.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                lines += 1
                whole_bytes += len(line)
        file.truncate(whole_bytes)
    return lines
