"""Whether data fit a model: its positions, its vocabulary, its end token. Checked before hours of training."""

from typing import TYPE_CHECKING

from model_store.model.spec import ModelSpec
from nash.errors import RequestError
from nash.recipes.recipe import DataRecipe

if TYPE_CHECKING:  # it imports torch, and lengths are checked before anything slow is
    from nash.data.examples import TokenizedPairs


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


def check_tokens(pairs: "TokenizedPairs", spec: ModelSpec) -> None:
    """Check for tokens that the model has no embedding for, and for targets that never end.

    Raises:
        RequestError: there are some; the tokenizer belongs to another model, or adds no end token to a text.
    """
    for texts, size in ((pairs.sources, spec.vocab_size), (pairs.targets, spec.target_vocab_size)):
        largest = texts.largest()
        if largest >= size:
            raise RequestError(
                f"the tokenizer gives the token id {largest}, but the model has a vocabulary of {size}: they do not "
                "belong together (tokenizer_config.json may name another class than the model's)"
            )
    if len(pairs) and not pairs.targets.has(spec.eos_id):
        raise RequestError(
            f"the tokenizer ends no target with the model's end token {spec.eos_id}, so no answer would ever end: give "
            "tokenizer.json a post-processor that adds it, or config.json the eos_token_id that the tokenizer adds"
        )
