"""The workload for which a recipe's speed is requested and measured."""

from itertools import islice

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from model_store.store import Store, StoredVersion
from nash.data.examples import TokenizedPairs
from nash.data.rows import Rows
from nash.device import choose_device
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
        dtype=choose_dtype(_asked(recipe)).dtype,
        threads=recipe.threads,
        device=_asked(recipe).device,
    )


def as_served(
    recipe: WorkloadRecipe, device: str, dense: StoredVersion | None, store: Store, console: Console
) -> WorkloadRecipe:
    """The recipe with the device and the dtype in which the dense model would be served; None: it is not in the store.

    `device` is the run's. The pruned model is measured in the same way: a speed-up compares models, not dtypes.
    """
    recipe = on_device(recipe, device)
    if recipe.dtype != AUTO:
        return recipe
    records = () if dense is None else store.quality(dense.ref)
    choice = choose_dtype(_asked(recipe), records)
    console.print(f"speed is that of the engine on {recipe.device} in {choice.dtype} ({choice.why})", soft_wrap=True)
    return recipe.model_copy(update={"dtype": choice.dtype})


def on_device(recipe: WorkloadRecipe, device: str) -> WorkloadRecipe:
    """The recipe with its own device or, if it leaves it open, with the run's `device`.

    Raises:
        RequestError: this machine does not have it.
    """
    return recipe.model_copy(update={"device": device if recipe.device is None else choose_device(recipe.device)})


def _asked(recipe: WorkloadRecipe) -> EngineConfig:
    return EngineConfig(dtype=recipe.dtype, device=recipe.device or "cpu")
