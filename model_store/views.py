"""Model directories made of hard links to blobs: what a loader opens is the very file that was verified."""

from pathlib import Path

from model_store.blobs import REPAIR
from model_store.disk import damage, make_folder, private_folder, replace_by_link
from model_store.errors import CorruptStoreError, InvalidRequestError
from model_store.layout import Layout
from model_store.manifest import Manifest
from model_store.safetensors_header import read_header
from model_store.source import WEIGHTS


def open_view(layout: Layout, manifest: Manifest, digest: str, ref: str) -> Path:
    """The directory of a version, complete and verified file by file in this call.

    Several processes may do this at once: each file is put in place in one step, and only where it is missing
    or bad. A view that is in order is only read, so the store may then lie on a read-only disk.

    Raises:
        CorruptStoreError: a blob is damaged, or something foreign stands in the directory.
    """
    view = layout.view(digest)
    bad = [f for f in manifest.files if damage(view / f.path, f.sha256, f.size) is not None]
    if bad:
        make_folder(view)
        with private_folder(layout.tmp) as tmp:
            for file in bad:
                blob = layout.blob(file.sha256)
                if (what := damage(blob, file.sha256, file.size)) is not None:
                    raise CorruptStoreError(f"{ref}: {file.path} {what} ({blob}): {REPAIR}")
                replace_by_link(blob, view / file.path, tmp)
    foreign = sorted({path.name for path in view.iterdir()} - {file.path for file in manifest.files})
    if foreign:
        raise CorruptStoreError(f"{ref}: {view / foreign[0]} is not part of the version: delete {view}")
    try:
        read_header(view / WEIGHTS)
    except InvalidRequestError as error:
        raise CorruptStoreError(f"{ref}: {error}: {REPAIR}") from None
    return view
