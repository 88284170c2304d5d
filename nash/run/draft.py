"""A prune recipe written out with comments, for `nash init`."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from model_store.model.spec import ModelSpec
from model_store.version.ref import looks_like_path
from nash.data.formats import on_hub
from nash.data.guess import Columns, MetricGuess


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A length limit in tokens, and what it was chosen by."""

    tokens: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What `nash init` found out."""

    model: str
    name: str
    spec: ModelSpec
    splits: dict[str, Path]
    columns: Columns
    metric: MetricGuess
    source_limit: Limit
    target_limit: Limit

    def toml(self, folder: Path) -> str:
        """The recipe as a file in `folder`; its paths are relative to it."""
        layers, positions = self.spec.dense_decoder_layers, self.spec.max_positions
        half = (layers + 1) // 2
        splits = "\n".join(f"{split} = {_text(_path(path, folder))}" for split, path in self.splits.items())
        test = (
            ""
            if "test" in self.splits
            else '# test = "..."  # the report\'s figures: without it, the validation rows\n'
        )
        model = _path(Path(self.model), folder) if looks_like_path(self.model) else self.model
        limit = "any length" if positions is None else f"texts of at most {positions} tokens"
        return f"""# Written by nash init: `nash prune --dry-run` on this file says what it does, `nash prune` does it.
# Every key, with its default, is described in docs/recipes.md.

# {self.spec.family}, {self.spec.dense_encoder_layers} encoder and {layers} decoder layers, {limit}
model = {_text(model)}
# The store gets NAME@dense and NAME@pruned.
name = {_text(self.name)}
# What quality means: {self.metric.why}. Also: phonemes, exact, summarization, translation,
# question_answering, classification, correlation.
metric = "{self.metric.metric}"
# Publish nothing that keeps less than this share of the dense model's quality.
# min_quality = 0.97

[data]
{splits}
{test}source_column = {_text(self.columns.source)}
target_columns = [{_text(self.columns.target)}]
# Put before every source, as the model was fine-tuned with: "summarize: " for many a T5.
# prefix = ""
max_source_tokens = {self.source_limit.tokens}  # {self.source_limit.why}
max_target_tokens = {self.target_limit.tokens}  # {self.target_limit.why}

[pruning]
# An answer is written token by token by the decoder: its layers are what costs time.
decoder_layers = {half}  # of {layers}
# The encoder's heads and feed-forward units: this share of their weights is cut.
encoder_sparsity = 0.3
# Or ask for a speed instead of the two keys above, and the shape for it is found by measuring.
# speedup = 2.0

# Trains the student with its gates, which learn what can go.
[prune_training]
epochs = 1.0
batch_size = 32
learning_rate = 1e-4

# Trains what is left. More epochs are what helps most; a finished run may be extended by more of them.
[final_training]
epochs = 3.0
batch_size = 32
learning_rate = 1e-4
keep_best = true  # the weights of the best validation, not the last ones
# validation_steps = 500  # default: after every epoch
# early_stopping = 3  # validations without a better one
"""


def _text(text: str) -> str:
    """TOML's basic strings are JSON's, but for escaped surrogates."""
    return json.dumps(text, ensure_ascii=False)


def _path(path: Path, folder: Path) -> str:
    if on_hub(path):
        return str(path)
    relative = os.path.relpath(path.absolute(), folder.absolute())
    return relative if relative.startswith(".") else f"./{relative}"
