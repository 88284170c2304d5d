"""What a run would do, for `--dry-run`: everything is read and checked, nothing is trained or written."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from rich.console import Console

from model_store.store import Store
from nash.checkpoints.opening import open_model
from nash.data.examples import TokenizedPairs
from nash.data.rows import read_rows
from nash.device import choose_device
from nash.measuring.assess import check_assessable
from nash.measuring.metrics import check_references
from nash.modeling.folders import load_tokenizer
from nash.modeling.fresh import new_model
from nash.precision import choose_precision
from nash.recipes.recipe import FinetuneRecipe, OptimizationRecipe
from nash.run.progress import Stage
from nash.training.checkpoint import largest_folder_bytes
from nash.training.schedule import PhaseLength


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """One phase of training."""

    name: str
    steps: int
    rows_per_step: int
    validations: int
    precision: str

    @classmethod
    def of(cls, name: str, optimization: OptimizationRecipe, pairs: int, device: str) -> Self:
        """The phase over so many pairs of source and target, on the device."""
        length = PhaseLength.of(optimization, pairs)
        every = optimization.validation_steps or length.updates_per_epoch
        return cls(
            name=name,
            steps=length.steps,
            rows_per_step=optimization.batch_size * optimization.gradient_accumulation,
            validations=-(-length.steps // every),
            precision=choose_precision(optimization.precision, device).precision,
        )


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The plan of a run. `bytes` is the most that its folder takes."""

    shape: str
    rows: dict[str, int]
    phases: Sequence[PhasePlan]
    out: Path
    bytes: int

    @property
    def free_bytes(self) -> int:
        """The room where the folder stands or would stand."""
        return shutil.disk_usage(next(each for each in (self.out, *self.out.absolute().parents) if each.is_dir())).free

    def document(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        return asdict(self) | {"out": str(self.out), "free_bytes": self.free_bytes}

    def lines(self) -> Iterator[str]:
        """The plan for people."""
        yield self.shape
        yield "rows: " + ", ".join(f"{count} {split}" for split, count in self.rows.items())
        for phase in self.phases:
            yield (
                f"{phase.name}: {phase.steps} steps of {phase.rows_per_step} rows in {phase.precision}, "
                f"{phase.validations} validation{'s' if phase.validations != 1 else ''}"
            )
        yield f"{self.out}: at most about {self.bytes / 1e6:.0f} MB, {self.free_bytes / 1e6:.0f} MB are free"
        if self.bytes > self.free_bytes:
            yield "warning: that is more than there is room for"


def plan_of(recipe: FinetuneRecipe, out: Path, store: Store, console: Console) -> RunPlan:
    """The plan of `nash finetune`.

    Raises:
        RequestError: data, tokenizer or start model cannot be used.
    """
    data = recipe.data
    with Stage("reading the data", console):
        rows = {"training": read_rows(data.train, data), "validation": read_rows(data.validation, data)}
        rows["test"] = (rows["validation"] if data.test is None else read_rows(data.test, data))[: data.test_rows]
        for split in ("validation", "test"):
            check_references(recipe.metric, [row.targets for row in rows[split]])
    device = choose_device(recipe.device)
    if recipe.model is not None:
        with open_model(recipe.model, store) as found, Stage("checking that the model runs", console):
            tokenizer, parameters = load_tokenizer(found.model.folder), found.model.parameters
            check_assessable(found.model, rows["test"], recipe.metric, data, device)
        shape = f"from {recipe.model}, {parameters / 1e6:.2f} million parameters"
    else:
        assert recipe.shape is not None
        assert recipe.tokenizer is not None
        tokenizer = load_tokenizer(recipe.tokenizer)
        model = new_model(recipe.shape, tokenizer, data.max_source_tokens, data.max_target_tokens)
        parameters = model.num_parameters()
        shape = f"from scratch, {parameters / 1e6:.2f} million parameters"
    with Stage("tokenizing the texts", console):
        pairs = TokenizedPairs.under(data, rows["training"], tokenizer)
    return RunPlan(
        shape=shape,
        rows={split: len(each) for split, each in rows.items()},
        phases=[PhasePlan.of("training", recipe.training, len(pairs), device)],
        out=out,
        bytes=largest_folder_bytes(parameters),
    )
