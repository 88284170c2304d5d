"""Check every byte that versions depend on, and report the bad files."""

from collections.abc import Iterator
from dataclasses import dataclass

from model_store.errors import CorruptStoreError, InvalidRequestError, UnknownSchemaError
from model_store.model.model import is_weights
from model_store.model.safetensors_header import read_header
from model_store.objects import keys
from model_store.objects.aliases import AliasMove, alias_names, alias_version, history, usable_versions
from model_store.objects.blobs import blob_damage, read_manifest
from model_store.objects.records import read_records
from model_store.objects.versions import model_names, read_version
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
        aliases = alias_names(storage, name)
        named = [number for alias in aliases if (number := alias_version(storage, name, alias)) is not None]
        for version in usable_versions(storage, name, named):
            yield f"{name}:{version}", verify_version(place, name, version)
        for alias in aliases:
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
    key, what = blob_damage(place.storage, file.sha256, file.size)
    if what is not None:
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
    moves = history(place.storage, name, alias)
    for move in moves.values():
        if isinstance(move, CorruptStoreError):
            yield Problem(ref=ref, file="alias pointer", what=str(move))
    last = moves[max(moves)] if moves else None
    if not isinstance(last, AliasMove) or last.version is None:
        return
    # Now: it may be younger than this verification.
    if place.storage.stat(keys.version(name, last.version)) is None:
        what = f"names version {last.version}, which does not exist: `nash models untag {name} {alias}`"
        yield Problem(ref=ref, file="alias pointer", what=what)
