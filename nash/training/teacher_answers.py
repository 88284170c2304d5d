"""Sequence-level distillation (Kim and Rush, 2016): the student learns the teacher's own answers.

Its best answer to each row, or several (its best beams), with the data's own targets or without, and without those
answers that are too far from the targets: a teacher's mistakes are poor examples.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from rich.console import Console

from model_store.model.model import Model
from nash.data.rows import Rows, TaskRow
from nash.measuring.assess import evaluation_config
from nash.measuring.evaluate import best_answers
from nash.measuring.metrics import METRICS, quality
from nash.recipes.recipe import DistillationRecipe, MetricKind, PruneRecipe
from nash.run.progress import Stage
from server.engine.interface.config import EngineConfig

_CHUNK_ROWS = 2000  # rows written at once: an interruption loses at most these


def answers_file(folder: Path, distillation: DistillationRecipe) -> Path:
    """The file of answers in the folder of a run or of its sweep: a list of texts a row, in the rows' order."""
    several = "" if distillation.answers == 1 else f"-{distillation.answers}"
    return folder / f"teacher_answers{several}.jsonl"


def with_teacher_answers(
    rows: Rows, teacher: Model, recipe: PruneRecipe, device: str, out: Path, console: Console
) -> Rows:
    """The rows with answers of the `teacher`, generated on the device, as their targets.

    A row without a usable answer keeps its targets. Answers are kept in `out`; those that are already there are not
    generated again.
    """
    distillation = recipe.distillation
    file = answers_file(out, distillation)
    there = _whole_lines(file)
    if there < len(rows):
        title = "the teacher answers the training rows"
        with Stage(title, console, len(rows), done=there, unit="rows") as stage:
            config = evaluation_config(recipe.data, device)
            _answer(rows, there, teacher, config, distillation.answers, file, stage)
    return AnsweredRows(rows, file, distillation, recipe.metric)


class AnsweredRows(Collection[TaskRow]):
    """Rows with the answers in a file as their targets; both are read anew on every walk."""

    def __init__(self, rows: Rows, file: Path, distillation: DistillationRecipe, metric: MetricKind) -> None:
        self._rows = rows
        self._file = file
        self._distillation = distillation
        self._metric = metric

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[TaskRow]:
        with self._file.open(encoding="ascii") as lines:
            for row, answers in zip(self._rows, map(json.loads, lines), strict=True):
                own = row.targets if self._distillation.keep_targets else ()
                good = (answer for answer in answers if answer.strip() and self._is_good(answer, row))
                yield replace(row, targets=tuple(dict.fromkeys((*own, *good))) or row.targets)

    def __contains__(self, row: object) -> bool:
        return any(row == each for each in self)

    def _is_good(self, answer: str, row: TaskRow) -> bool:
        least = self._distillation.least_answer_quality
        return least is None or quality(self._metric, METRICS[self._metric]([answer], [row.targets])) >= least


def _answer(rows: Rows, there: int, teacher: Model, config: EngineConfig, count: int, file: Path, stage: Stage) -> None:
    """Append the answers to all rows but the first `there` to the file."""
    left = islice(rows, there, None)
    while chunk := list(islice(left, _CHUNK_ROWS)):

        def watch(done: int, _: int, there: int = there) -> None:
            stage.update(there + done)

        made = best_answers(teacher, [row.source for row in chunk], config, count, watch)
        with file.open("a", encoding="ascii") as kept:
            kept.write("".join(json.dumps(answers) + "\n" for answers in made))
        there += len(made)


def _whole_lines(path: Path) -> int:
    """The number of answered rows in a file; an incomplete last line, left by a kill, is cut off."""
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
