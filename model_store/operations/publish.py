"""The publish protocol. A crash at any point leaves at most garbage: blobs and folders that nothing refers to."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from model_store.errors import InvalidRequestError, StoreAccessError
from model_store.model.model import Model
from model_store.objects import keys
from model_store.objects.aliases import alias_version, check_reason, first_move, move_alias
from model_store.objects.blobs import Bring, store_blob
from model_store.objects.format import check, prepare
from model_store.objects.versions import commit_version
from model_store.operations.checkout import open_view
from model_store.operations.fetch import Progress
from model_store.operations.place import Place
from model_store.storage.files import copy_new, free_bytes, write_new
from model_store.version.manifest import FileEntry, Kind, Lineage, Manifest, MeasuredOn, SpecSummary
from model_store.version.ref import DEFAULT_ALIAS, check_name
from model_store.version.source import ModelSource, inspect, list_files


@dataclass(frozen=True, kw_only=True)
class Published:
    """Where a model was published; `created` is false if the same content was already there."""

    name: str
    version: int
    digest: str
    created: bool


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What to publish, and under which name."""

    name: str
    directory: Path
    kind: Kind | None  # None: as config.json says
    alias: str | None
    lineage: Lineage
    metrics: Mapping[str, float]
    measured_on: MeasuredOn | None
    licence: str | None
    reason: str  # goes into the alias's history

    def __post_init__(self) -> None:
        check_name(self.name, "model name")
        if self.alias is not None:
            check_name(self.alias, "alias")
        check_reason(self.reason)


def publish(place: Place, publication: Publication) -> Published:
    """Store a model directory as the next version of its name.

    Raises:
        InvalidRequestError: the directory is not a publishable model.
        CorruptStoreError: the version's view, from which it is loaded, contains a foreign file.
        StoreAccessError: there is not enough space.
    """
    sizes = list_files(publication.directory)
    Model.open(publication.directory).check_weights()  # so that errors name the original, not its copy
    check(place.storage)
    with place.private_folder() as tmp:
        _check_space(tmp, publication.directory, sum(sizes.values()))
        copies = tmp / "model"
        copies.mkdir()
        files = []
        for path in sizes:
            sha256, size = copy_new(publication.directory / path, copies / path)
            files.append(FileEntry(path=path, sha256=sha256, size=size))
        # Check the copies, not the originals: they are what is stored.
        manifest = _manifest(publication, inspect(copies), tuple(files))
        write_new(tmp / "manifest", manifest.canonical_bytes())
        own = FileEntry(path="manifest", sha256=manifest.digest, size=len(manifest.canonical_bytes()))
        fresh = {file.sha256: copies / file.path for file in files} | {own.sha256: tmp / own.path}
        return commit(
            place,
            manifest,
            {file.sha256: file for file in (*files, own)},
            lambda sha256: nullcontext(fresh[sha256]),
            publication.name,
            publication.alias,
            publication.reason,
        )


def commit(
    place: Place,
    manifest: Manifest,
    files: Mapping[str, FileEntry],
    bring: Bring,
    name: str,
    alias: str | None,
    reason: str,
    progress: Progress = lambda _: None,
) -> Published:
    """Make a manifest the newest version of a name. `files` are its files and itself, by sha256; `bring` has them.

    The steps are in this order so that a version which can be read has all its blobs. `progress` hears of the bytes of
    files that were there already.
    """
    storage, digest = place.storage, manifest.digest
    prepare(storage)
    for sha256, file in files.items():
        if not store_blob(storage, bring, sha256, file.size, time.time()):
            progress(file.size)
    aliased = None if alias is None else alias_version(storage, name, alias)
    version, created = commit_version(storage, name, aliased, digest)
    # A collection that began before the version existed may have taken blobs since.
    for sha256 in files:
        if storage.stat(keys.blob(sha256)) is None:
            with bring(sha256) as fresh:
                storage.put(keys.blob(sha256), fresh)
    if not place.remote:
        # Now, because loaders may see the store on a read-only disk; and before an alias points to the version.
        open_view(place, manifest, digest, f"{name}:{version}", trusted=files)
    if version == 1:  # also where whoever made it was killed before it came to this
        first_move(storage, name, DEFAULT_ALIAS, version, "the first version")
    if alias is not None:
        move_alias(storage, name, alias, version, reason)
    return Published(name=name, version=version, digest=digest, created=created)


def _check_space(folder: Path, directory: Path, needed_bytes: int) -> None:
    free = free_bytes(folder)
    if free < needed_bytes:
        raise StoreAccessError(
            f"{folder.parent} has {free} bytes free, {directory} takes {needed_bytes}: make room or use another store"
        )


def _manifest(publication: Publication, source: ModelSource, files: tuple[FileEntry, ...]) -> Manifest:
    if publication.kind == "dense" and source.kind == "pruned":
        raise InvalidRequestError(f"{publication.directory} holds a pruned model: publish it without kind 'dense'")
    spec = source.spec
    return Manifest.create(
        kind=publication.kind or source.kind,
        files=files,
        spec=SpecSummary(
            family=spec.family,
            vocab_size=spec.vocab_size,
            dense_vocab_size=spec.dense_vocab_size if spec.dense_vocab_size != spec.vocab_size else None,
            d_model=spec.d_model,
            width=spec.width if spec.width != spec.d_model else None,
            encoder_layers=len(spec.encoder),
            decoder_layers=len(spec.decoder),
            dense_encoder_layers=spec.dense_encoder_layers,
            dense_decoder_layers=spec.dense_decoder_layers,
            encoder_sparsity=round(spec.encoder_sparsity, 6),
            parameters=source.parameters,
            bytes=source.tensor_bytes,
            dtype=source.dtype,
        ),
        lineage=publication.lineage,
        metrics=dict(publication.metrics),
        measured_on=publication.measured_on,
        licence=publication.licence,
    )
