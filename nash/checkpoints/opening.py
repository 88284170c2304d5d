"""Open a model wherever it is, and complete it if its folder is not: then the rest of the project can use it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoConfig, GenerationConfig

from model_store.errors import StoreAccessError
from model_store.find import FoundModel
from model_store.model.model import CONFIG, GENERATION, INDEX, TOKENIZER, Model, weight_files
from model_store.store import Store
from nash.checkpoints.conversion import fast_form
from nash.checkpoints.folder import check_tokenizer, is_complete, locate
from nash.checkpoints.proof import TEXTS, check_equal
from nash.errors import RequestError
from nash.modeling.folders import load_tokenizer, quiet_libraries
from nash.run.disk import full_disk_named


@contextmanager
def open_model(path_or_ref: str, store: Store) -> Iterator[FoundModel]:
    """A model by its path, its REF in the store or its name on the hub, complete while the context lasts.

    A folder that lacks `tokenizer.json`, and one from the hub, is completed in a copy of links among the store's work
    in progress, with a `generation_config.json` if that is missing too; the original is only read. A made tokenizer is
    compared with its class on texts that tokenizers differ in.

    Raises:
        RequestError: the model cannot be found or completed, or a made tokenizer differs from its class.
        model_store.errors.ModelStoreError: there is no such model, or it is not supported.
    """
    found = locate(path_or_ref, store)
    if is_complete(found):
        yield found
        return
    check_tokenizer(found.model)
    with ExitStack() as stack:
        original = found.model.folder
        name = original.name if found.origin is None else found.origin.partition("@")[0].rpartition("/")[2]
        folder = _work_folder(store, stack) / name
        folder.mkdir()
        files = _files(found)
        with full_disk_named(folder, sum(file.stat().st_size for file in files)):
            for file in files:
                _link(file, folder / file.name)
        quiet_libraries()
        if not (folder / GENERATION).is_file():
            GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
        if not (folder / TOKENIZER).is_file():
            _make_tokenizer(folder, found.ref)
        yield replace(found, model=Model.open(folder))


def _work_folder(store: Store, stack: ExitStack) -> Path:
    """In the store, so that publishing stays on one disk; elsewhere if there is no store, or it is read-only."""
    if store.exists():
        try:
            return stack.enter_context(store.work_folder())
        except StoreAccessError:
            pass
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nash-")))


def _files(found: FoundModel) -> list[Path]:
    """All files of a user's folder, so that publishing names what does not belong there; of the hub's, the model's."""
    folder = found.model.folder
    if found.origin is None:
        return [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    settings = [folder / name for name in (CONFIG, GENERATION, INDEX) if (folder / name).is_file()]
    return [*settings, *weight_files(folder), *found.model.tokenizer_files]


def _link(file: Path, target: Path) -> None:
    real = file.resolve()  # the hub's cache consists of symbolic links
    try:
        os.link(real, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(real, target)


def _make_tokenizer(folder: Path, ref: str) -> None:
    """Write tokenizer.json into a folder without one, so that serving, and the class with it, do as the class alone."""
    tokenizer = load_tokenizer(folder)
    try:
        made = fast_form(tokenizer, folder)
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"{ref}: no tokenizer.json can be made of its tokenizer ({error!r}): save one there"
        ) from error
    made.save(str(folder / TOKENIZER))
    served = Tokenizer.from_file(str(folder / TOKENIZER))
    for each in (tokenizer, load_tokenizer(folder)):
        check_equal(served, each, TEXTS, TEXTS, ref)
