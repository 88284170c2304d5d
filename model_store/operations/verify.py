"""Check every byte that versions depend on, and report the bad files."""

from collections.abc import Iterator
from dataclasses import dataclass

from model_store.errors import CorruptStoreError, InvalidRequestError, UnknownSchemaError
from model_store.model.model import is_weights
from model_store.model.safetensors_header import read_header
from model_store.objects.aliases import alias_names, read_alias
from model_store.objects.blobs import blob_key, damage, read_manifest
from model_store.objects.records import read_records
from model_store.objects.versions import live_version, live_versions, model_names, read_version
from model_store.operations.place import Place
from model_store.version.manifest import FileEntry


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One bad file.

    `ref` needs it; `file` is its name in the model directory, "manifest", "measurement", or the kind of pointer.
    """

    ref: str
    file: str
    what: str


def verify_store(place: Place) -> Iterator[tuple[str, list[Problem]]]:
    """What is wrong with each version and alias of a whole store: its name and the bad files, one after the other."""
    storage = place.storage
    for name in model_names(storage):
        live = live_versions(storage, name)
        for version in live:
            yield f"{name}:{version}", verify_version(place, name, version)
        for alias in alias_names(storage, name):
            yield f"{name}@{alias}", list(_alias_problems(place, name, alias))


def verify_version(place: Place, name: str, version: int) -> list[Problem]:
    """Every bad file of one version."""
    storage, ref = place.storage, f"{name}:{version}"
    try:
        digest = read_version(storage, name, version)
    except CorruptStoreError as error:
        return [Problem(ref=ref, file="version pointer", what=str(error))]
    try:
        manifest = read_manifest(storage, digest)
    except (CorruptStoreError, UnknownSchemaError) as error:
        return [Problem(ref=ref, file="manifest", what=str(error))]
    problems = [
        Problem(ref=ref, file=file.path, what=what)
        for file in manifest.files
        if (what := _file_problem(place, file)) is not None
    ]
    for _, record in read_records(storage, name, digest):
        if isinstance(record, CorruptStoreError):
            problems.append(Problem(ref=ref, file="measurement", what=str(record)))
    return problems


def _file_problem(place: Place, file: FileEntry) -> str | None:
    key = blob_key(place.storage, file.sha256)
    if (what := damage(place.storage, key, file.sha256, file.size)) is not None:
        return f"{what} ({place.storage.url}/{key})"
    if place.remote or not is_weights(file.path):
        return None
    try:
        read_header(place.local.path(key))
    except InvalidRequestError as error:
        return str(error)
    return None


def _alias_problems(place: Place, name: str, alias: str) -> Iterator[Problem]:
    ref = f"{name}@{alias}"
    try:
        move = read_alias(place.storage, name, alias)
    except CorruptStoreError as error:
        yield Problem(ref=ref, file="alias pointer", what=str(error))
        return
    if move is None or move.version is None:
        return
    if live_version(place.storage, name, move.version) is None:  # now: it may be younger than this verification
        what = f"names version {move.version}, which does not exist"
        yield Problem(ref=ref, file="alias pointer", what=what)
