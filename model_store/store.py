"""The model store on a local disk: immutable versions of models, named by number and by alias.

Everything is created whole or not at all. Any number of processes may therefore read and write one store at once, and
a killed process leaves nothing behind that a reader could see.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from model_store.disk.blobs import read_manifest
from model_store.disk.files import link_if_absent, make_folder, private_folder, write_new
from model_store.disk.paths import Paths
from model_store.disk.pointers import (
    alias_names,
    find_version,
    live_versions,
    model_names,
    move_alias,
    read_alias,
    read_version,
    utc_text,
)
from model_store.disk.records import read_quality, record_paths
from model_store.disk.views import open_view
from model_store.errors import InvalidRequestError, StoreAccessError
from model_store.publish import Publication, Published, publish
from model_store.verify import Problem, verify_store, verify_version
from model_store.version.manifest import Kind, Lineage, Manifest
from model_store.version.quality import QualityRecord
from model_store.version.ref import Ref, check_name

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class StoredVersion:
    """One live version. `aliases` are the ones that name it now, sorted; `created_at` is UTC, ISO."""

    name: str
    version: int
    digest: str
    manifest: Manifest
    aliases: tuple[str, ...]
    created_at: str

    @property
    def ref(self) -> str:
        return f"{self.name}:{self.version}"


def _naming_disk_errors(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """Turn an operating system error into a one-line error that names the path."""

    @functools.wraps(method)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            raise StoreAccessError(
                f"{error.filename or 'the store'}: {error.strerror}: check the path, its permissions and the space left"
            ) from error

    return wrapper


class Store:
    """A store in one folder, which need not exist until something is published.

    Every method may raise `StoreAccessError`; methods that read a version may raise `CorruptStoreError`.
    """

    def __init__(self, root: Path, *, on_step: Callable[[str], None] = lambda _: None) -> None:
        """`on_step` is called just before each step of a publish."""
        self.root = root
        self._paths = Paths(root)
        self._on_step = on_step

    @_naming_disk_errors
    def publish(
        self,
        name: str,
        directory: Path,
        *,
        kind: Kind | None = None,
        alias: str | None = None,
        lineage: Lineage | None = None,
        metrics: Mapping[str, float] | None = None,
        licence: str | None = None,
        reason: str = "publish",
    ) -> Published:
        """Store a model directory as the next version of `name`, and point `alias` at it.

        If the content, manifest included, equals that of the newest version or of the one that `alias` names, no new
        version is made. `kind` is read from `config.json` if not given.

        Raises:
            InvalidRequestError: a name is invalid, or the directory is not a publishable model.
        """
        publication = Publication(
            name=name,
            directory=directory,
            kind=kind,
            alias=alias,
            lineage=lineage or Lineage(),
            metrics=metrics or {},
            licence=licence,
            reason=reason,
        )
        return publish(self._paths, publication, self._on_step)

    @_naming_disk_errors
    def check_writable(self) -> None:
        """Check that the store is writable, before hours of work on what will be published. Creates its folder."""
        with private_folder(self._paths.tmp):
            pass

    @_naming_disk_errors
    def resolve(self, ref: Ref | str) -> StoredVersion:
        """The version that a reference names now; a bare name means its alias `default`, else `dense`, else the oldest.

        Raises:
            InvalidRequestError: the reference is malformed.
            NotFoundError: the store has no such name, alias or version.
        """
        ref = _parsed(ref)
        version = find_version(self._paths, ref)
        return self._load(ref.name, version, self._aliases(ref.name))

    @_naming_disk_errors
    def list(self) -> list[StoredVersion]:
        """All live versions, by name and number."""
        found = []
        for name in model_names(self._paths):
            aliases = self._aliases(name)
            found += [self._load(name, number, aliases) for number in live_versions(self._paths, name)]
        return found

    @_naming_disk_errors
    def tag(self, ref: Ref | str, alias: str, reason: str = "tag") -> StoredVersion:
        """Point `alias` at a version of the same name; return the version with its new aliases.

        Raises:
            InvalidRequestError: the alias or the reference is malformed.
            NotFoundError: there is no such version.
        """
        check_name(alias, "alias")
        version = self.resolve(ref)
        with private_folder(self._paths.tmp) as tmp:
            move_alias(self._paths, version.name, alias, version.version, reason, tmp)
        return self.resolve(version.ref)

    @_naming_disk_errors
    def verify(self, ref: Ref | str | None = None) -> Sequence[Problem]:
        """Read every file of one version, or of the whole store; return the bad ones.

        Raises:
            NotFoundError: there is no such version.
        """
        if ref is None:
            return verify_store(self._paths)
        ref = _parsed(ref)
        return verify_version(self._paths, ref.name, find_version(self._paths, ref))

    @_naming_disk_errors
    def checkout(self, ref: Ref | str) -> Path:
        """A read-only model directory with exactly the files of a version, each verified in this call.

        Raises:
            NotFoundError: there is no such version.
            CorruptStoreError: a file is not what was published; the message names it. Load nothing then.
        """
        version = self.resolve(ref)
        return open_view(self._paths, version.manifest, version.digest, version.ref)

    @_naming_disk_errors
    def add_quality(self, ref: Ref | str, record: QualityRecord) -> bool:
        """Store a version's measured quality in a dtype; false if there is a record already, which is kept.

        Raises:
            InvalidRequestError: the record cannot be written as JSON.
        """
        version = self.resolve(ref)
        try:
            data, key = (
                json.dumps(each, sort_keys=True, allow_nan=False).encode("ascii")
                for each in (record.document(), record.key)
            )
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"a quality record of {version.ref} is not JSON: {error}") from None
        folder = self._paths.measurements(version.name, version.digest)
        make_folder(folder)
        with private_folder(self._paths.tmp) as tmp:
            write_new(tmp / "record", data)
            return link_if_absent(tmp / "record", folder / hashlib.sha256(key).hexdigest())

    def quality(self, ref: Ref | str) -> Sequence[QualityRecord]:
        """The records that `add_quality` stored for a version, oldest first.

        Raises:
            CorruptStoreError: one of them cannot be read.
        """
        version = self.resolve(ref)
        paths = record_paths(self._paths, version.name, version.digest)
        return [record for path in paths if (record := read_quality(path)) is not None]

    @contextmanager
    def work_folder(self) -> Iterator[Path]:
        """A new folder among the store's work in progress, deleted afterwards."""
        with private_folder(self._paths.tmp) as folder:
            yield folder

    def _aliases(self, name: str) -> dict[int, tuple[str, ...]]:
        """The aliases of a model, by the version number they name now."""
        aliases: dict[int, tuple[str, ...]] = {}
        for alias in alias_names(self._paths, name):
            move = read_alias(self._paths, name, alias)
            if move is not None:
                aliases[move.version] = (*aliases.get(move.version, ()), alias)
        return aliases

    def _load(self, name: str, version: int, aliases: Mapping[int, tuple[str, ...]]) -> StoredVersion:
        digest = read_version(self._paths, name, version)
        return StoredVersion(
            name=name,
            version=version,
            digest=digest,
            manifest=read_manifest(self._paths, digest),
            aliases=aliases.get(version, ()),
            created_at=utc_text(self._paths.version(name, version).stat().st_mtime),
        )


def _parsed(ref: Ref | str) -> Ref:
    return Ref.parse(ref) if isinstance(ref, str) else ref
