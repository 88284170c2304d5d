"""Sequence-level distillation (Kim and Rush, 2016): the student learns the teacher's own answers."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from model_store.model.model import Model
from nash.data.rows import TaskRow
from nash.measuring.assess import evaluation_config
from nash.measuring.evaluate import predict
from nash.recipes.recipe import DataRecipe
from nash.run.progress import Stage
from server.engine.interface.config import EngineConfig

FILE = "teacher_answers.jsonl"  # in the folder of the run or of its sweep: one text per row, in the rows' order
_CHUNK_ROWS = 2000  # rows written at once: an interruption loses at most these


def with_teacher_answers(
    rows: Sequence[TaskRow], teacher: Model, data: DataRecipe, device: str, out: Path, console: Console
) -> list[TaskRow]:
    """The rows with the answer of the `teacher`, on the device, as their only target.

    A row whose answer is empty keeps its targets. Answers are kept in `out`; those that are already there are not
    generated again.
    """
    config = evaluation_config(data, device)
    answers = _whole_lines(out / FILE)
    if len(answers) < len(rows):
        title = "the teacher answers the training rows"
        with Stage(title, console, len(rows), done=len(answers), unit="rows") as stage:
            _answer(rows, answers, teacher, config, out / FILE, stage)
    return [
        replace(row, targets=(answer,)) if answer.strip() else row for row, answer in zip(rows, answers, strict=True)
    ]


def _answer(
    rows: Sequence[TaskRow], answers: list[str], teacher: Model, config: EngineConfig, file: Path, stage: Stage
) -> None:
    """Answer the rows that have no answer yet; append the answers to `answers` and to the file."""
    while len(answers) < len(rows):
        there = len(answers)

        def watch(done: int, _: int, there: int = there) -> None:
            stage.update(there + done)

        made = predict(teacher, [row.source for row in rows[there : there + _CHUNK_ROWS]], config, watch)
        with file.open("a", encoding="utf-8") as kept:
            kept.write("".join(json.dumps(answer) + "\n" for answer in made))
        answers += made


def _whole_lines(path: Path) -> list[str]:
    """The answers in a file; an incomplete last line, left by a kill, is cut off."""
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]
