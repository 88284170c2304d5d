"""The publish protocol. A crash at any point leaves at most garbage: blobs and folders that nothing refers to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from model_store.disk.blobs import store_blob
from model_store.disk.files import copy_new, free_bytes, make_folder, private_folder, write_new
from model_store.disk.paths import Paths
from model_store.disk.pointers import commit_version, move_alias
from model_store.disk.views import open_view
from model_store.errors import InvalidRequestError, StoreAccessError
from model_store.model.model import Model
from model_store.version.manifest import FileEntry, Kind, Lineage, Manifest, SpecSummary
from model_store.version.ref import check_name
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
    licence: str | None
    reason: str  # goes into the alias's history

    def __post_init__(self) -> None:
        check_name(self.name, "model name")
        if self.alias is not None:
            check_name(self.alias, "alias")


def publish(paths: Paths, publication: Publication, on_step: Callable[[str], None]) -> Published:
    """Store a model directory as the next version of its name; `on_step` is called before each step.

    Raises:
        InvalidRequestError: the directory is not a publishable model.
        CorruptStoreError: the version's view, from which it is loaded, contains a foreign file.
        StoreAccessError: there is not enough space.
    """
    sizes = list_files(publication.directory)
    Model.open(publication.directory).check_weights()  # so that errors name the original, not its copy
    make_folder(paths.root)
    _check_space(paths.root, publication.directory, sum(sizes.values()))
    with private_folder(paths.tmp) as tmp:
        copies = tmp / "model"
        copies.mkdir()
        files = []
        for path in sizes:
            on_step(f"copy {path}")
            sha256, size = copy_new(publication.directory / path, copies / path)
            files.append(FileEntry(path=path, sha256=sha256, size=size))
        # Check the copies, not the originals: they are what is stored.
        manifest = _manifest(publication, inspect(copies), tuple(files))
        digest = manifest.digest
        for file in files:
            on_step(f"link {file.path}")
            store_blob(paths, copies / file.path, file.sha256, tmp)
        on_step("manifest")
        write_new(tmp / "manifest", manifest.canonical_bytes())
        store_blob(paths, tmp / "manifest", digest, tmp)
        on_step("version")
        version, created = commit_version(paths, publication.name, publication.alias, digest, tmp)
        on_step("check")
        # A garbage collection that began before the version existed may have deleted blobs linked above.
        fresh = {file.sha256: copies / file.path for file in files} | {digest: tmp / "manifest"}
        for sha256, copy in fresh.items():
            if not paths.blob(sha256).exists():
                store_blob(paths, copy, sha256, tmp)
        # Now, because loaders may see the store on a read-only disk; and before an alias points to the version.
        on_step("view")
        open_view(paths, manifest, digest, f"{publication.name}:{version}")
        if publication.alias is not None:
            on_step("alias")
            move_alias(paths, publication.name, publication.alias, version, publication.reason, tmp)
        on_step("drop")
    return Published(name=publication.name, version=version, digest=digest, created=created)


def _check_space(root: Path, directory: Path, needed_bytes: int) -> None:
    free = free_bytes(root)
    if free < needed_bytes:
        raise StoreAccessError(
            f"{root} has {free} bytes free, {directory} takes {needed_bytes}: make room or use another store"
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
        licence=publication.licence,
    )
