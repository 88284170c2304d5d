"""The plan of a run: its shape, its rows, its phases, and the room that it takes."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from nash.precision import choose_precision
from nash.recipes.recipe import OptimizationRecipe
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
