"""The workload for which a recipe's speed is requested and measured."""

from itertools import islice

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from model_store.store import Store, StoredVersion
from nash.data.examples import TokenizedPairs
from nash.data.rows import Rows
from nash.measuring.latency import Workload
from nash.recipes.recipe import DataRecipe, WorkloadRecipe
from server.engine.capabilities import AUTO
from server.engine.dtype_choice import choose_dtype
from server.engine.interface.config import EngineConfig

_MOST_ROWS = 5000  # to tokenize for the mean lengths


def workload_of(recipe: WorkloadRecipe, data: DataRecipe, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Workload:
    """The recipe's workload; lengths that it leaves open are the rows' means, in tokens, under the data's limits.

    A dtype that it leaves open is that of a model without records, float32: see `with_dtype`.

    Means, not medians, because time is linear in the tokens: all texts together take as long as that many texts of the
    mean length, and an end-to-end speed-up is a ratio of such sums.
    """
    sources, targets = recipe.source_tokens, recipe.new_tokens
    if sources is None or targets is None:
        some = list(islice(rows, 0, None, -(-len(rows) // _MOST_ROWS)))
        lengths = TokenizedPairs.under(data, some, tokenizer).lengths()
        sources = sources or round(float(lengths[:, 0].mean()))
        targets = targets or round(float(lengths[:, 1].mean()))
    return Workload(
        batch=recipe.batch,
        source_tokens=sources,
        new_tokens=targets,
        dtype=choose_dtype(EngineConfig(dtype=recipe.dtype)).dtype,
        threads=recipe.threads,
    )


def with_dtype(recipe: WorkloadRecipe, dense: StoredVersion | None, store: Store, console: Console) -> WorkloadRecipe:
    """The recipe with the dtype in which the dense model would be served; None is a model outside the store.

    The pruned model is measured in the same dtype: a speed-up compares models, not dtypes.
    """
    if recipe.dtype != AUTO:
        return recipe
    records = () if dense is None else store.quality(dense.ref)
    choice = choose_dtype(EngineConfig(dtype=recipe.dtype), records)
    console.print(f"speed is that of the engine in {choice.dtype} ({choice.why})", soft_wrap=True)
    return recipe.model_copy(update={"dtype": choice.dtype})
