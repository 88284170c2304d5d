"""A task of a few rows, and recipes whose runs take twenty steps and log a loss after each."""

import json
from pathlib import Path

from tests.golden.tiny_folders import build

_WORDS = ("abc", "fade", "bead", "cab", "deed", "a", "feed", "dab", "ace", "bed", "face", "ebb", "fab", "ad", "decade")
_SPLITS = {"train": _WORDS[:8], "validation": _WORDS[8:11], "test": _WORDS[11:]}

# Eight rows and eight a batch: an epoch is a step, and its end the moment at which the validation loss is logged.
_EPOCHS = 'batch_size = 8\nlearning_rate = 0.003\nprecision = "float32"\nvalidation_rows = 0\nepochs = {epochs}\n'
_DATA = """
[data]
train = "train.jsonl"
validation = "validation.jsonl"
test = "test.jsonl"
max_source_tokens = 16
max_target_tokens = 12
"""
TUNE = f"""
model = "./dense"
metric = "phonemes"
seed = 3
{_DATA}
[training]
warmup_steps = 3
weight_decay = 0.1
schedule = "cosine"
{_EPOCHS.format(epochs=20)}
"""
# The Trainer logs what it minimizes every fifty steps: so many, and the losses and the sparsity are there once.
PRUNE = f"""
model = "./dense"
name = "back"
publish_slower = true
metric = "phonemes"
{_DATA}
[pruning]
encoder_sparsity = 0.4
decoder_layers = 1
gate_learning_rate = 0.2
multiplier_learning_rate = 1.0
[distillation]
encoder_hidden_weight = 0.01
decoder_hidden_weight = 0.01
[workload]
batch = 2
source_tokens = 5
new_tokens = 4
dtype = "float32"
[prune_training]
{_EPOCHS.format(epochs=50)}
[final_training]
optimizer = "muon"
{_EPOCHS.format(epochs=20)}
"""
CALIBRATED = "[quantization]\nint4 = true\n"
SWEEP = """
recipe = "small.toml"
decoder_layers = [1]
encoder_sparsity = [0.3]
publish = "all"
"""


def write_task(folder: Path) -> Path:
    """Write model, rows and recipes into a folder, and return it. The task: spell a word backwards."""
    build("t5", folder / "dense")
    for split, words in _SPLITS.items():
        rows = [{"source": word, "target": " ".join(reversed(word))} for word in words]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tune.toml").write_text(TUNE)
    (folder / "prune.toml").write_text(PRUNE + CALIBRATED)
    (folder / "small.toml").write_text(PRUNE.replace("epochs = 50", "epochs = 2").replace("epochs = 20", "epochs = 2"))
    (folder / "sweep.toml").write_text(SWEEP)
    return folder
