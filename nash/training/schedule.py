"""The length of a phase, and the learning rate over it: pure functions of the step."""

import math
from dataclasses import dataclass
from typing import Self

from nash.recipes.recipe import OptimizationRecipe


@dataclass(frozen=True, kw_only=True)
class PhaseLength:
    """How many updates a phase makes."""

    updates_per_epoch: int
    steps: int

    @classmethod
    def of(cls, optimization: OptimizationRecipe, pairs: int) -> Self:
        """The length over so many pairs of source and target."""
        micro_batches = math.ceil(pairs / optimization.batch_size)
        updates = max(1, math.ceil(micro_batches / optimization.gradient_accumulation))
        return cls(updates_per_epoch=updates, steps=optimization.max_steps or math.ceil(optimization.epochs * updates))


def rate_factor(optimization: OptimizationRecipe, step: int, steps: int) -> float:
    """The factor on the learning rate, from 0 to 1, in the update that follows `step` of `steps` updates.

    It rises linearly from 0 over the warm-up, then stays or falls to 0.
    """
    warmup = optimization.warmup_steps
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    match optimization.schedule:
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "constant":
            return 1.0
