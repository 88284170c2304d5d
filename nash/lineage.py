"""Where a trained model came from, as its manifest keeps it."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from model_store.manifest import Lineage
from model_store.ref import looks_like_path
from nash.data import data_digest
from nash.models import ResolvedModel, weights_digest
from nash.recipe import DataRecipe, FinetuneRecipe, PruneRecipe


def data_digests(data: DataRecipe) -> dict[str, str]:
    """The sha256 of every split's data, by split."""
    paths = {"train": data.train, "validation": data.validation, "test": data.test}
    return {split: data_digest(path, data) for split, path in paths.items() if path is not None}


def input_digests(data: DataRecipe, model: ResolvedModel | None) -> dict[str, str]:
    """What a run reads, by content: a file or an alias may be another one when the run goes on."""
    digests = data_digests(data)
    if model is not None:
        digests["model"] = weights_digest(model.folder) if model.version is None else model.version.digest
    return digests


def lineage_of(recipe: FinetuneRecipe | PruneRecipe, parent: str | None) -> Lineage:
    """Parent digest, data digests, recipe, seed and code version of a run."""
    return Lineage(
        parent=parent,
        data=data_digests(recipe.data),
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
