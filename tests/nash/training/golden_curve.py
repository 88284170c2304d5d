"""Twenty steps of pruning under every loss, and the file that says how they went.

`python -m tests.nash.training.golden_curve` writes the file anew, after a change that is meant to change training.
"""

import json
import tempfile
from pathlib import Path

import torch

from nash.recipes.recipe import DistillationRecipe, PruningRecipe
from tests.nash.tiny_training import build_task_model, student_phase

FILE = Path(__file__).with_name("golden_curve.json")
STEPS = 20


def curve(folder: Path) -> list[dict[str, float]]:
    """For each step its losses (task, prediction, hidden states, sparsity's), the sum of them, and the sparsity."""
    torch.set_num_threads(1)
    phase = student_phase(
        build_task_model(folder / "model", dropout=0.1),
        folder / "out",
        distill=DistillationRecipe(encoder_hidden_weight=0.01, decoder_hidden_weight=0.01),
        pruning=PruningRecipe(encoder_sparsity=0.5, gate_learning_rate=0.5, multiplier_learning_rate=5.0),
        rows=48,
        max_steps=STEPS,
        batch_size=8,
        optimizer="muon",
        learning_rate=0.01,
        warmup_steps=4,
    )
    names = ("loss", "task", "prediction", "encoder", "decoder", "lagrangian", "sparsity")
    return [{name: entry[name] for name in names} for entry in phase.run() if "loss" in entry]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        lines = ",\n".join(json.dumps(entry) for entry in curve(Path(name)))
    FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
