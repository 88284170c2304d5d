"""The learning rate over a phase: pure functions of the step."""

import math

from nash.recipes.recipe import OptimizationRecipe


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
