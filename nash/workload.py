"""The workload that a recipe's speed is asked and measured for."""

from collections.abc import Sequence
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from nash.data import TokenizedPairs
from nash.latency import Workload
from nash.recipe import DataRecipe, WorkloadRecipe
from nash.rows import Row

_MOST_ROWS = 5000  # are tokenized for their mean lengths


def workload_of(
    recipe: WorkloadRecipe, data: DataRecipe, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
) -> Workload:
    """The recipe's workload; lengths that it leaves open are the rows' means, in tokens, under the data's limits.

    Means and not medians: time is a straight line over the tokens, so all texts together take what their number times
    the mean length takes, and a speed-up end to end is a ratio of such sums.
    """
    sources, targets = recipe.source_tokens, recipe.new_tokens
    if sources is None or targets is None:
        some = rows[:: -(-len(rows) // _MOST_ROWS)]
        lengths = TokenizedPairs.under(data, some, tokenizer).lengths()
        sources = sources or round(fmean(source for source, _ in lengths))
        targets = targets or round(fmean(target for _, target in lengths))
    return Workload(
        batch=recipe.batch, source_tokens=sources, new_tokens=targets, dtype=recipe.dtype, threads=recipe.threads
    )
