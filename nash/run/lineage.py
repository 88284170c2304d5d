"""A trained model's lineage, as its manifest stores it."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from model_store.find import FoundModel
from model_store.model.model import files_digest, tokenizer_files
from model_store.version.manifest import Lineage
from model_store.version.ref import looks_like_path
from nash.data.formats import on_hub
from nash.data.rows import data_digest
from nash.recipes.recipe import HUB_PREFIX, TRACELESS_KEYS, DataRecipe, FinetuneRecipe, PruneRecipe

_SPLITS = ("train", "validation", "test")


def input_digests(data: DataRecipe, model: FoundModel | None, tokenizer: Path | None = None) -> dict[str, str]:
    """Digests of what a run reads: a file or an alias may have changed when the run is resumed.

    `tokenizer` is the folder of a tokenizer that comes without a model.
    """
    paths = {split: getattr(data, split) for split in _SPLITS}
    digests = {split: data_digest(path, data) for split, path in paths.items() if path is not None}
    if model is not None:
        digests["model"] = model.model.digest() if model.version is None else model.version.digest
    if tokenizer is not None:
        digests["tokenizer"] = files_digest(*tokenizer_files(tokenizer))
    return digests


def lineage_of(
    recipe: FinetuneRecipe | PruneRecipe,
    parent: str | None,
    inputs: dict[str, str],
    precision: dict[str, str],
    *,
    trained_from: str | None = None,
) -> Lineage:
    """Parent digest, data digests, recipe, seed and code version of a run.

    `inputs` are the `input_digests` of what the run has read, because its files may have changed since. `precision` is
    the precision of each phase. `trained_from` names a start model that is not in the store.
    """
    return Lineage(
        parent=parent,
        data={split: inputs[split] for split in _SPLITS if split in inputs},
        recipe=portable(recipe),
        seed=recipe.seed,
        code_version=version("nash"),
        precision=precision,
        trained_from=trained_from,
    )


def portable(recipe: FinetuneRecipe | PruneRecipe) -> dict[str, Any]:
    """A recipe as a JSON object without this machine's folders and device, and without keys that leave no trace.

    The same work must look the same everywhere.
    """
    settings: dict[str, Any] = _without_traceless(recipe.model_dump(mode="python", exclude={"device"}))
    if recipe.model is not None and looks_like_path(recipe.model) and not recipe.model.startswith(HUB_PREFIX):
        settings["model"] = Path(recipe.model).name
    document: dict[str, Any] = TypeAdapter(dict[str, Any]).dump_python(_without_folders(settings), mode="json")
    return document


def _without_traceless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_traceless(item) for key, item in value.items() if key not in TRACELESS_KEYS}
    return value


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    return value.name if isinstance(value, Path) and not on_hub(value) else value
