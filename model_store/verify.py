"""Check every byte that versions depend on, and report the bad files."""

from collections.abc import Iterator
from dataclasses import dataclass

from model_store.disk.blobs import read_manifest
from model_store.disk.files import damage
from model_store.disk.paths import Paths
from model_store.disk.pointers import alias_names, live_versions, model_names, read_alias, read_version
from model_store.disk.records import read_quality, record_paths
from model_store.errors import CorruptStoreError, InvalidRequestError, UnknownSchemaError
from model_store.model.model import is_weights
from model_store.model.safetensors_header import read_header
from model_store.version.manifest import FileEntry


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One bad file.

    `ref` needs it; `file` is its name in the model directory, "manifest", "measurement", or the kind of pointer.
    """

    ref: str
    file: str
    what: str


def verify_store(paths: Paths) -> list[Problem]:
    """Every bad file of a whole store, name by name, versions before aliases."""
    problems: list[Problem] = []
    for name in model_names(paths):
        live = live_versions(paths, name)
        for version in live:
            problems.extend(verify_version(paths, name, version))
        problems.extend(_alias_problems(paths, name, live))
    return problems


def verify_version(paths: Paths, name: str, version: int) -> list[Problem]:
    """Every bad file of one version."""
    ref = f"{name}:{version}"
    try:
        digest = read_version(paths, name, version)
    except CorruptStoreError as error:
        return [Problem(ref=ref, file="version pointer", what=str(error))]
    try:
        manifest = read_manifest(paths, digest)
    except (CorruptStoreError, UnknownSchemaError) as error:
        return [Problem(ref=ref, file="manifest", what=str(error))]
    problems = [
        Problem(ref=ref, file=file.path, what=what)
        for file in manifest.files
        if (what := _file_problem(paths, file)) is not None
    ]
    for path in record_paths(paths, name, digest):
        try:
            read_quality(path)
        except CorruptStoreError as error:
            problems.append(Problem(ref=ref, file="measurement", what=str(error)))
    return problems


def _file_problem(paths: Paths, file: FileEntry) -> str | None:
    blob = paths.blob(file.sha256)
    if (what := damage(blob, file.sha256, file.size)) is not None:
        return f"{what} ({blob})"
    if not is_weights(file.path):
        return None
    try:
        read_header(blob)
    except InvalidRequestError as error:
        return str(error)
    return None


def _alias_problems(paths: Paths, name: str, live: list[int]) -> Iterator[Problem]:
    for alias in alias_names(paths, name):
        try:
            move = read_alias(paths, name, alias)
        except CorruptStoreError as error:
            yield Problem(ref=f"{name}@{alias}", file="alias pointer", what=str(error))
            continue
        if move is not None and move.version not in live:
            what = f"names version {move.version}, which does not exist"
            yield Problem(ref=f"{name}@{alias}", file="alias pointer", what=what)
