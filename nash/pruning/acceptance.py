"""Whether a pruned model is worth publishing: as good and as fast as was asked for."""

from pathlib import Path

from rich.console import Console

from nash.errors import NashError
from nash.measuring.assess import Assessment
from nash.measuring.metrics import HEADLINE, quality
from nash.recipes.recipe import PruneRecipe

_WARNED_SHARE = 0.95  # of the dense model's quality; less is worth a warning, whatever was asked for


def check_accepted(recipe: PruneRecipe, found: Assessment, out: Path, console: Console) -> None:
    """Warn of a great loss of quality.

    Raises:
        NashError: less quality is left than `min_quality`, or the model is slower than the dense one with 95 %
            confidence and `publish_slower` is not set. Nothing is published, and the model stays in `out`.
    """
    assert found.pruned is not None
    assert found.speedup is not None
    dense, pruned = (quality(recipe.metric, side.metrics) for side in (found.dense, found.pruned))
    share = f"{pruned / dense:.1%} of " if dense else ""
    fell = (
        f"the pruned model has {share}the dense one's quality ({HEADLINE[recipe.metric].replace('_', ' ')} "
        f"{found.dense.metrics[HEADLINE[recipe.metric]]:.2f} % before, "
        f"{found.pruned.metrics[HEADLINE[recipe.metric]]:.2f} % now)"
    )
    kept = f"nothing is published, and the model stays in {out / 'model'}"
    if recipe.min_quality is not None and pruned < recipe.min_quality * dense:
        raise NashError(
            f"{fell}, and min_quality is {recipe.min_quality:.1%}: {kept}. Train longer (the same command with more "
            "epochs goes on), cut less, or ask for less"
        )
    if pruned < _WARNED_SHARE * dense:
        console.print(f"warning: {fell}; --min-quality refuses to publish such a model", soft_wrap=True)
    low, high = found.speedup.interval
    if high < 1 and not recipe.publish_slower:
        raise NashError(
            f"the pruned model is slower than the dense one, {found.speedup.median:.2f}x as fast (95 % interval: "
            f"{low:.2f} to {high:.2f}): {kept}. Keep fewer decoder layers, ask for a speed (--speedup), or say "
            "--publish-slower"
        )
