"""Length limits of texts, checked against a model's positions."""

from model_store.model.spec import ModelSpec
from nash.errors import RequestError
from nash.recipes.recipe import DataRecipe


def check_lengths(spec: ModelSpec, data: DataRecipe) -> None:
    """Refuse length limits beyond the model's positions: training would fail at the first longer text.

    Raises:
        RequestError: a limit is too high.
    """
    limits = {"max_source_tokens": data.max_source_tokens, "max_target_tokens": data.max_target_tokens}
    for key, limit in limits.items():
        if spec.max_positions is not None and limit > spec.max_positions:
            raise RequestError(
                f"data.{key} {limit} is more than the model's {spec.max_positions} positions: "
                f"set it to {spec.max_positions} or less"
            )
