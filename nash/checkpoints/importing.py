"""Bring a model from elsewhere in a form that can be published: its own files only, its tokenizer converted."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_store.find import FoundModel
from model_store.model.model import CONFIG, GENERATION, INDEX, Model, weight_files
from model_store.store import Store
from nash.checkpoints.hub import names_a_hub_model
from nash.errors import RequestError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")


def suggested_name(place: str) -> str:
    """A legal name in the store for a model, from the last part of its path or of its name on the hub."""
    last = place.partition("@")[0].rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return re.sub(r"[^a-z0-9._-]+", "-", last.lower()).lstrip("._-")[:64]


@contextmanager
def importable(place: str, store: Store) -> Iterator[tuple[FoundModel, Path]]:
    """A model from a folder or from the hub, and a folder of its own files alone, while the context lasts.

    Raises:
        RequestError: its weights are pickles, or it cannot be found or completed.
        model_store.errors.ModelStoreError: there is no model there, or it is not supported.
    """
    from nash.checkpoints.opening import open_model

    with open_model(place, store) as found, store.work_folder() as work:
        source, target = found.model.folder, work / "model"
        target.mkdir()
        settings = [source / name for name in (CONFIG, GENERATION, INDEX) if (source / name).is_file()]
        for file in [*settings, *weight_files(source), *found.model.tokenizer_files]:
            try:
                os.link(file.resolve(), target / file.name)
            except OSError:  # another disk, or one without links
                shutil.copyfile(file, target / file.name)
        if not (target / GENERATION).is_file():
            from transformers import AutoConfig, GenerationConfig

            GenerationConfig.from_model_config(AutoConfig.from_pretrained(source)).save_pretrained(target)
        Model.open(target)
        yield found, target


def check_no_pickles(place: str) -> None:
    """Refuse a folder whose weights are pickles.

    Raises:
        RequestError: they are; the message says how to convert them.
    """
    folder = Path(place)
    if names_a_hub_model(place) or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise RequestError(
            f"{folder / pickles[0]}: pickles and other formats that can run code are never opened, and there are no "
            "safetensors beside it: convert it where you trust it, with "
            "AutoModelForSeq2SeqLM.from_pretrained(FOLDER).save_pretrained(NEW), and import NEW"
        )
