"""What each of two processes does in `test_ranks`: `python -m tests.nash.two_processes FOLDER`, started as by torchrun.

They train together, then they prune together by the command line, and then one of them dies.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nash import ranks
from nash.cli.main import main
from nash.pruning.student import Student
from nash.recipes.recipe import PruningRecipe
from nash.training.phase import Phase, Watcher
from tests.nash.tiny_training import student_phase

STEPS = 20
# 21 rows: the last micro-batch of an epoch has one, which both processes compute.
SETTINGS: dict[str, Any] = {
    "rows": 21,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "learning_rate": 0.01,
    "checkpoint_steps": 10,
    "max_steps": STEPS,
}


class Dying(Watcher):
    """Ends the second process without a word, as a machine does that loses its power."""

    def updated(self, phase: Phase) -> None:
        if ranks.number() == 1:
            os._exit(7)


def phase_of(model: Path, out: Path) -> Phase:
    """A pruning phase under every loss, without dropout."""
    pruning = PruningRecipe(encoder_sparsity=0.5, gate_learning_rate=0.5, multiplier_learning_rate=5.0)
    return student_phase(model, out, pruning=pruning, **SETTINGS)


def state_of(phase: Phase) -> dict[str, torch.Tensor]:
    """Weights, maps, gates and multipliers, and the decision on every gate."""
    student = phase.objective.module
    assert isinstance(student, Student)
    assert student.gates is not None
    kept = student.gates.harden(0.5).kept
    own = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    return own | {f"kept.{name}": bits for name, bits in kept.items()}


def train(folder: Path) -> None:
    """Train, and write the log and this process's state."""
    with ranks.together("cpu"):
        phase = phase_of(folder / "model", folder / "together")
        log = phase.run()
        (folder / f"log-{ranks.number()}.json").write_text(json.dumps(log))
        save_file(state_of(phase), folder / f"state-{ranks.number()}.safetensors")


def die(folder: Path) -> None:
    """The second process ends within a phase, after an update."""
    with ranks.together("cpu"):
        phase = phase_of(folder / "model", folder / "alone")
        phase.watcher = Dying()
        phase.run()


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, port = Path(sys.argv[1]), int(os.environ["MASTER_PORT"])
    train(folder)
    os.environ["MASTER_PORT"] = str(port + 1)
    sys.argv = ["nash", "prune", str(folder / "prune.toml"), "--out", str(folder / "run"), "--store"]
    sys.argv += [str(folder / "store"), "--json"]
    with contextlib.suppress(SystemExit):
        main()
    sys.stdout.flush()
    os.environ["MASTER_PORT"] = str(port + 2)
    die(folder)
