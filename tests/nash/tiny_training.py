"""A task, a teacher and phases of training small enough that an update takes milliseconds."""

import json
import random
from pathlib import Path
from typing import Any

from torch import nn
from transformers import set_seed

from model_store.model.model import Model
from model_store.model.spec import shortened
from nash.data.examples import TokenizedPairs
from nash.data.rows import TaskRow
from nash.modeling.folders import load_dense, load_tokenizer
from nash.pruning.distillation import DistillationMaps
from nash.pruning.objective import StudentObjective
from nash.pruning.student import Student
from nash.recipes.layer_selection import block_ends
from nash.recipes.recipe import DataRecipe, DistillationRecipe, OptimizationRecipe, PruningRecipe
from nash.run.live_log import LiveLog
from nash.structure.compaction import shorten_decoder
from nash.structure.masking import GateKinds, Gates
from nash.training.objective import TaskObjective
from nash.training.phase import Phase, Watcher
from nash.training.validation import TaskScore
from tests.tiny_models import build_tiny_t5

KEPT_LAYERS = (0, 2)
ALL_LOSSES = DistillationRecipe(encoder_hidden_weight=1.0, decoder_hidden_weight=1.0)

FLOAT32 = {"precision": "float32"}  # figures are to be the same on every machine


def build_task_model(directory: Path, dropout: float) -> Path:
    """A dense model of three layers a stack; without dropout, gradients are a function of the batch."""
    build_tiny_t5(directory, d_model=16, heads=3, head_dim=4, d_ff=12, encoder_layers=3)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"dropout_rate": dropout}))
    return directory


def task_rows(count: int) -> list[TaskRow]:
    """Spell a word backwards; lengths differ much, so that padding and token counts matter."""
    generator = random.Random(count)
    words = ["".join(generator.choices("abcdef", k=generator.randint(1, 12))) for _ in range(count)]
    return [TaskRow(source=word, targets=(word[::-1],)) for word in words]


def task_pairs(directory: Path, count: int) -> TokenizedPairs:
    """The task's first rows as tokens."""
    return TokenizedPairs.of(task_rows(count), load_tokenizer(directory), max_source_tokens=16, max_target_tokens=16)


def task_score(directory: Path, out: Path) -> TaskScore:
    """The metric of the task on five rows."""
    data = DataRecipe(train=Path(), validation=Path(), max_source_tokens=16, max_target_tokens=16)
    return TaskScore(rows=task_rows(5), metric="phonemes", data=data, tokenizer=directory, folder=out)


def finetune_phase(
    directory: Path,
    out: Path,
    watcher: Watcher | None = None,
    *,
    rows: int = 16,
    workers: int = 0,
    score: TaskScore | None = None,
    **optimization: Any,
) -> Phase:
    """Fine-tunes the dense model; every step is logged."""
    set_seed(0)
    return Phase(
        TaskObjective(load_dense(Model.open(directory))),
        task_pairs(directory, rows),
        OptimizationRecipe(**FLOAT32 | optimization),
        spec=Model.open(directory).spec,
        folder=out,
        seed=0,
        validation=task_pairs(directory, 5),
        score=score,
        watcher=watcher,
        live_log=LiveLog(out / "log.jsonl"),
        log_steps=1,
        workers=workers,
    )


def student_phase(
    directory: Path,
    out: Path,
    watcher: Watcher | None = None,
    *,
    distill: DistillationRecipe = ALL_LOSSES,
    pruning: PruningRecipe | None = None,
    rows: int = 16,
    score: TaskScore | None = None,
    **optimization: Any,
) -> Phase:
    """Trains a student with two of three decoder layers, the pruning phase where `pruning` is given."""
    set_seed(0)
    teacher = load_dense(Model.open(directory))
    spec = Model.open(directory).spec
    model = shorten_decoder(teacher, KEPT_LAYERS)
    _perturb(model)
    maps = DistillationMaps(spec.d_model, len(KEPT_LAYERS))
    gates = None
    if pruning is not None:
        kinds = GateKinds(heads=pruning.gate_heads, units=pruning.gate_units)
        gates = Gates(shortened(spec, KEPT_LAYERS), kinds)
    objective = StudentObjective(
        Student(model, maps, gates),
        teacher,
        distill,
        block_ends=block_ends(KEPT_LAYERS, 3),
        pruning=pruning or PruningRecipe(),
    )
    return Phase(
        objective,
        task_pairs(directory, rows),
        OptimizationRecipe(**FLOAT32 | optimization),
        spec=spec,
        folder=out,
        seed=0,
        validation=task_pairs(directory, 5),
        score=score,
        watcher=watcher,
        live_log=LiveLog(out / "log.jsonl"),
        log_steps=1,
    )


def _perturb(student: nn.Module) -> None:
    """Away from the teacher, or the hidden states of the encoder would differ by nothing."""
    for name, parameter in student.named_parameters():
        if name.startswith("encoder.block"):
            parameter.data.mul_(1.1)
