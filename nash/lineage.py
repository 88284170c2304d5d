"""Where a trained model came from, as its manifest keeps it."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from model_store.manifest import Lineage
from model_store.ref import looks_like_path
from nash.data import file_digest
from nash.recipe import FinetuneRecipe, PruneRecipe


def lineage_of(recipe: FinetuneRecipe | PruneRecipe, parent: str | None) -> Lineage:
    """Parent digest, data digests, recipe, seed and code version of a run."""
    files = {"train": recipe.data.train, "validation": recipe.data.validation, "test": recipe.data.test}
    return Lineage(
        parent=parent,
        data={split: file_digest(path) for split, path in files.items() if path is not None},
        recipe=_portable(recipe.model_dump(mode="python")),
        seed=recipe.seed,
        code_version=version("nash"),
    )


def _portable(value: Any) -> Any:
    """A recipe without this machine's folders: equal work must give an equal digest everywhere."""
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str) and looks_like_path(value):
        return Path(value).name
    return value
