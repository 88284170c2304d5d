"""The task's own metric of a model in training, on some of the validation rows."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from transformers import PreTrainedModel

from model_store.model.model import Model
from nash.data.rows import TaskRow
from nash.measuring.assess import evaluation_config
from nash.measuring.evaluate import evaluate
from nash.measuring.latency import torch_threads_kept
from nash.measuring.metrics import check_references, quality
from nash.modeling.folders import save_model
from nash.recipes.recipe import DataRecipe, FinetuneRecipe, MetricKind, PruneRecipe


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Has a model answer validation rows as it would in the report: written as a folder, run by the engine.

    Decoding is greedy. `tokenizer` is the folder of the tokenizer; `folder` is where the model stands for as long as
    this takes.
    """

    rows: Sequence[TaskRow]
    metric: MetricKind
    data: DataRecipe
    tokenizer: Path
    folder: Path
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the rows before any training.

        Raises:
            RequestError: the metric cannot compare with a target.
        """
        check_references(self.metric, [row.targets for row in self.rows])

    @classmethod
    def of(
        cls,
        rows: Sequence[TaskRow],
        recipe: FinetuneRecipe | PruneRecipe,
        most: int,
        device: str,
        tokenizer: Path,
        folder: Path,
    ) -> Self | None:
        """On at most so many of the rows, evenly spread, for a file may be sorted; None if that is none."""
        count = min(most, len(rows))
        some = [rows[i * len(rows) // count] for i in range(count)]
        made = cls(rows=some, metric=recipe.metric, data=recipe.data, tokenizer=tokenizer, folder=folder, device=device)
        return made if count else None

    def metrics(self, model: PreTrainedModel) -> dict[str, float]:
        """The metrics of the model, in percent. The model stays as it is."""
        written = self.folder / "validating"
        try:
            save_model(model, self.tokenizer, written, torch.float32)
            with torch_threads_kept():
                config = evaluation_config(self.data, self.device)
                return evaluate(Model.open(written), self.rows, self.metric, config, greedy=True).metrics
        finally:
            shutil.rmtree(written, ignore_errors=True)

    def quality(self, metrics: dict[str, float]) -> float:
        """The one figure that models are compared by: higher is better."""
        return quality(self.metric, metrics)
