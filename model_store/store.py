"""The model store: immutable versions of models, named by number and by alias, on a local disk or on object storage.

Everything is created whole or not at all. Any number of processes may therefore read and write one store at once, and
a killed process leaves nothing behind that a reader could see.
"""

import builtins
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from model_store.collector import collector_paused
from model_store.errors import (
    CorruptStoreError,
    InvalidRequestError,
    ModelStoreError,
    NotFoundError,
    StoreAccessError,
    UnknownSchemaError,
)
from model_store.model.config import spec_of
from model_store.model.model import CONFIG
from model_store.model.spec import ModelSpec
from model_store.objects import keys
from model_store.objects.aliases import (
    AliasMove,
    alias_names,
    alias_version,
    check_reason,
    history,
    move_alias,
    named_versions,
    read_alias,
    roll_back,
    usable_versions,
)
from model_store.objects.blobs import (
    GRACE_SECONDS,
    LARGEST_MANIFEST_BYTES,
    REPAIR,
    blob_key,
    parse_manifest,
    read_manifest,
)
from model_store.objects.format import check, prepare
from model_store.objects.records import add_record, read_qualities, read_records
from model_store.objects.times import utc_text
from model_store.objects.versions import Burial, burials, model_names, parse_version, read_version
from model_store.operations.cache import evict, most_bytes, touch
from model_store.operations.checkout import open_view
from model_store.operations.collect import Garbage, collect
from model_store.operations.fetch import Progress
from model_store.operations.place import Place
from model_store.operations.publish import Publication, Published, publish
from model_store.operations.remove import Removal, removable, remove
from model_store.operations.resolve import find_version
from model_store.operations.transfer import Transfer
from model_store.operations.verify import Problem, verify_store, verify_version
from model_store.version.latency import LatencyRecord
from model_store.version.manifest import Kind, Lineage, Manifest, MeasuredOn
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
    """A store at one place, which need not exist until something is published.

    Every method may raise `StoreAccessError`, and `InvalidRequestError` where the place holds something else than a
    store; methods that read a version may raise `CorruptStoreError`.
    """

    def __init__(self, url: str | Path) -> None:
        """`url` is a folder, or s3://BUCKET/PREFIX, whose credentials and endpoint come from the AWS_ variables.

        Raises:
            InvalidRequestError: it is neither, or obstore is not installed.
        """
        self._place = Place.of(url)
        self._storage = self._place.storage
        self.url = self._storage.url
        self.root = self._place.local.root  # where its files lie on this machine: its folder, or that of its cache

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
        measured_on: MeasuredOn | None = None,
        licence: str | None = None,
        reason: str = "publish",
    ) -> Published:
        """Store a model directory as the next version of `name`, and point `alias` at it.

        If the content, manifest included, equals that of the newest version or of the one that `alias` names, no new
        version is made. The first version of a name gets the alias `default` too. `kind` is read from `config.json` if
        not given.

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
            measured_on=measured_on,
            licence=licence,
            reason=reason,
        )
        return publish(self._place, publication)

    @_naming_disk_errors
    def check_writable(self) -> None:
        """Check that the store is writable, before hours of work on what will be published. Makes it one if need be."""
        prepare(self._storage)
        with self._place.private_folder():
            pass

    @_naming_disk_errors
    def exists(self) -> bool:
        """Whether anything was ever written to the store."""
        return self._storage.stat(keys.FORMAT) is not None or bool(self._storage.folders(""))

    @_naming_disk_errors
    def resolve(self, ref: Ref | str) -> StoredVersion:
        """The version that a reference names now; a bare name means its alias `default`, else `dense`, else the oldest.

        Raises:
            InvalidRequestError: the reference is malformed.
            NotFoundError: the store has no such name, alias or version.
        """
        check(self._storage)
        ref = _parsed(ref)
        number = find_version(self._storage, ref)
        digest = read_version(self._storage, ref.name, number)
        manifest = read_manifest(self._storage, digest)
        pointer = self._storage.stat(keys.version(ref.name, number))
        if pointer is None:
            raise NotFoundError(f"{ref.name}:{number} has just gone: `nash models ls` lists what is there")
        aliases = self._aliases(ref.name).get(number, ())
        return _stored(ref.name, number, digest, manifest, aliases, pointer.modified)

    @_naming_disk_errors
    def list(self, *, unreadable: Callable[[str], None] | None = None) -> builtins.list[StoredVersion]:
        """All live versions, by name and number. Of one that cannot be read, `unreadable` hears instead, if given.

        Raises:
            CorruptStoreError, UnknownSchemaError: a version cannot be read, and there is no `unreadable`.
        """
        check(self._storage)
        with collector_paused():
            return self._list(unreadable)

    def _list(self, unreadable: Callable[[str], None] | None) -> builtins.list[StoredVersion]:
        found: builtins.list[StoredVersion] = []
        for name in model_names(self._storage):
            aliases = self._aliases(name)
            live = usable_versions(self._storage, name, aliases)
            pointers = [keys.version(name, number) for number in live]
            read = self._storage.read_all(pointers)
            digests: dict[int, str] = {}
            for number, key, data in zip(live, pointers, read, strict=True):
                try:
                    digests[number] = parse_version(self._storage, key, data)
                except CorruptStoreError as error:
                    _tell(unreadable, f"{name}:{number}", error)
            manifests = self._manifests(set(digests.values()))
            for number, digest in digests.items():
                manifest = manifests[digest]
                if isinstance(manifest, Manifest):
                    modified = live[number].modified
                    found.append(_stored(name, number, digest, manifest, aliases.get(number, ()), modified))
                else:
                    _tell(unreadable, f"{name}:{number}", manifest)
        return found

    def parent_of(self, version: StoredVersion) -> StoredVersion | None:
        """The version that another one was made from, if the store has it."""
        digest = version.manifest.lineage.parent
        if digest is None:
            return None
        return next((each for each in self.list(unreadable=lambda _: None) if each.digest == digest), None)

    @_naming_disk_errors
    def spec(self, version: StoredVersion) -> ModelSpec:
        """The whole shape of a version, from its `config.json`.

        Raises:
            CorruptStoreError: that file is not what was published.
        """
        [file] = [each for each in version.manifest.files if each.path == CONFIG]
        data = self._storage.read(blob_key(self._storage, file.sha256), LARGEST_MANIFEST_BYTES) or b""
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise CorruptStoreError(f"{version.ref}: {CONFIG} is missing or damaged: {REPAIR}")
        return spec_of(json.loads(data))

    @_naming_disk_errors
    def tag(self, ref: Ref | str, alias: str, reason: str = "tag") -> StoredVersion:
        """Point `alias` at a version of the same name; return the version with its new aliases.

        Raises:
            InvalidRequestError: the alias or the reference is malformed.
            NotFoundError: there is no such version.
        """
        check_name(alias, "alias")
        check_reason(reason)
        check(self._storage)
        ref = _parsed(ref)
        number = find_version(self._storage, ref)  # no more than that: this also mends an alias that cannot be read
        move_alias(self._storage, ref.name, alias, number, reason)
        return self.resolve(Ref(name=ref.name, version=number))

    @_naming_disk_errors
    def untag(self, name: str, alias: str, reason: str = "untag") -> None:
        """Let an alias name nothing.

        Raises:
            InvalidRequestError: the name or the alias is malformed.
            NotFoundError: there is no such alias, or it names nothing already.
        """
        check_reason(reason)
        self._check_alias(name, alias)
        move = read_alias(self._storage, name, alias)
        if move is None or move.version is None:
            known = ", ".join(sorted(named_versions(self._storage, name))) or "none"
            raise NotFoundError(f"model {name!r} has no alias {alias!r}: it has {known}")
        move_alias(self._storage, name, alias, None, reason)

    @_naming_disk_errors
    def rollback(self, name: str, alias: str, reason: str | None = None) -> AliasMove:
        """Take back the last move of an alias that was not taken back yet, so that two rollbacks go two moves back.

        Raises:
            NotFoundError: there is no such alias.
            InvalidRequestError: nothing stood before that move, what stood was removed, or it moved meanwhile.
        """
        check_reason(reason)
        self._check_alias(name, alias)
        return roll_back(self._storage, name, alias, reason)

    @_naming_disk_errors
    def history(
        self, name: str, alias: str | None = None, *, unreadable: Callable[[str], None] | None = None
    ) -> dict[str, builtins.list[AliasMove]]:
        """The moves of one alias of a model, or of all, the first one first. `unreadable` is as in `list`.

        Raises:
            NotFoundError: there is no such model or alias.
            CorruptStoreError: a move cannot be read, and there is no `unreadable`.
        """
        check(self._storage)
        check_name(name, "model name")
        self._check_model(name)
        known = alias_names(self._storage, name)
        if alias is not None and alias not in known:
            raise NotFoundError(f"model {name!r} has no alias {alias!r}: it has {', '.join(known) or 'none'}")
        moves: dict[str, builtins.list[AliasMove]] = {}
        for each in known if alias is None else [alias]:
            moves[each] = []
            for move in history(self._storage, name, each).values():
                if isinstance(move, AliasMove):
                    moves[each].append(move)
                else:
                    _tell(unreadable, f"a move of {name}@{each}", move)
        return moves

    @_naming_disk_errors
    def removed(self, name: str) -> builtins.list[Burial]:
        """The removed versions of a model, ascending.

        Raises:
            NotFoundError: there is no such model.
        """
        check(self._storage)
        check_name(name, "model name")
        self._check_model(name)
        return burials(self._storage, name)

    @_naming_disk_errors
    def removable(self, ref: Ref | str) -> Removal:
        """What `remove` would remove. Its manifest need not be readable: removing it is then the remedy.

        Raises:
            InvalidRequestError: the reference can move, or an alias names the version.
            NotFoundError: there is no such version.
        """
        check(self._storage)
        ref = _parsed(ref)
        if ref.version is None and ref.digest is None:
            raise InvalidRequestError(f"{ref} can move: name the version by its number, as in {ref.name}:7")
        return removable(self._storage, ref.name, find_version(self._storage, ref))

    @_naming_disk_errors
    def remove(self, ref: Ref | str, reason: str = "rm") -> Removal:
        """Remove a version; `collect` frees its space. Its number never comes back. Return what it was.

        Raises:
            InvalidRequestError: the reference can move, or an alias names the version.
            NotFoundError: there is no such version.
        """
        check_reason(reason)
        removal = self.removable(ref)
        remove(self._storage, removal.name, removal.version, reason)
        return removal

    @_naming_disk_errors
    def collect(
        self,
        *,
        dry_run: bool = False,
        grace_seconds: float = GRACE_SECONDS,
        say: Callable[[str], None] = lambda _: None,
    ) -> Sequence[Garbage]:
        """Free what no version needs and is older than the grace period, or say what that would be.

        With a shorter grace period nobody may be publishing meanwhile.

        Raises:
            CorruptStoreError: a pointer or a manifest cannot be read; nothing was deleted.
        """
        check(self._storage)
        return collect(self._place, dry_run=dry_run, grace_seconds=grace_seconds, say=say)

    @_naming_disk_errors
    def verify(self, ref: Ref | str | None = None, *, say: Callable[[str], None] = lambda _: None) -> Sequence[Problem]:
        """Read every file of one version, or of the whole store; return the bad ones. `say` hears what was read.

        Raises:
            NotFoundError: there is no such version.
        """
        check(self._storage)
        if ref is None:
            problems: builtins.list[Problem] = []
            for checked, bad in verify_store(self._place):
                say(checked)
                problems.extend(bad)
            return problems
        ref = _parsed(ref)
        return verify_version(self._place, ref.name, find_version(self._storage, ref))

    @_naming_disk_errors
    def checkout(self, ref: Ref | str) -> Path:
        """A read-only model directory with exactly the files of a version, each verified in this call.

        Raises:
            NotFoundError: there is no such version.
            CorruptStoreError: a file is not what was published; the message names it. Load nothing then.
        """
        version = self.resolve(ref)
        limit_bytes = most_bytes()
        if self._place.remote:
            touch(self._place.local, version.digest)  # first, so that nobody clears it while it is verified
        view = open_view(self._place, version.manifest, version.digest, version.ref)
        if self._place.remote:
            touch(self._place.local, version.digest)
            evict(self._place.local, limit_bytes)
        return view

    @_naming_disk_errors
    def copy_to(
        self,
        target: "Store",
        ref: Ref | str,
        *,
        alias: str | None = None,
        reason: str = "copy",
        progress: Progress = lambda _: None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> Published:
        """Copy a version and its measurements to another store, where it gets the next number of its name.

        A copy that was interrupted goes on where it stopped when it is begun again.

        Raises:
            NotFoundError: there is no such version.
            CorruptStoreError: a file is not what was published.
        """
        if alias is not None:
            check_name(alias, "alias")
        check_reason(reason)
        if self.is_same_place(target):
            raise InvalidRequestError(f"{target.url} is the store that {ref} is in: name another one")
        version = self.resolve(ref)
        return Transfer(
            source=self._place,
            target=target._place,
            name=version.name,
            version=version.version,
            alias=alias,
            reason=reason,
            progress=progress,
            warn=warn,
        ).run()

    def is_same_place(self, other: "Store") -> bool:
        """Whether two stores are one, however they are written."""
        if self._place.remote or other._place.remote:
            return self.url == other.url
        return self.root.resolve() == other.root.resolve()

    @_naming_disk_errors
    def add_quality(self, ref: Ref | str, record: QualityRecord) -> bool:
        """Store a version's measured quality in a dtype; false if there is a record already, which is kept.

        Raises:
            InvalidRequestError: the record cannot be written as JSON.
        """
        return self._add_record(ref, record.document(), record.key)

    @_naming_disk_errors
    def add_latency(self, ref: Ref | str, record: LatencyRecord) -> bool:
        """Store a version's measured latency; false if the very same record is there already.

        Raises:
            InvalidRequestError: the record cannot be written as JSON.
        """
        return self._add_record(ref, record.document(), record.document())

    def _add_record(self, ref: Ref | str, document: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
        version = self.resolve(ref)
        return add_record(self._storage, version.name, version.digest, document, key)

    @_naming_disk_errors
    def quality(self, ref: Ref | str) -> Sequence[QualityRecord]:
        """The records that `add_quality` stored for a version, oldest first.

        Raises:
            CorruptStoreError: one of its records cannot be read.
        """
        version = self.resolve(ref)
        return read_qualities(self._storage, version.name, version.digest)

    @_naming_disk_errors
    def records(self, ref: Ref | str) -> Sequence[Mapping[str, Any]]:
        """All records of a version that can be read, oldest first."""
        version = self.resolve(ref)
        found = read_records(self._storage, version.name, version.digest)
        return [record for _, record in found if isinstance(record, dict)]

    @contextmanager
    def work_folder(self) -> Iterator[Path]:
        """A new folder among the store's work in progress, deleted afterwards."""
        with ExitStack() as stack:
            yield self._enter_private_folder(stack)

    @_naming_disk_errors
    def _enter_private_folder(self, stack: ExitStack) -> Path:
        return stack.enter_context(self._place.private_folder())

    def _check_alias(self, name: str, alias: str) -> None:
        check(self._storage)
        check_name(name, "model name")
        check_name(alias, "alias")
        self._check_model(name)

    def _check_model(self, name: str) -> None:
        if name not in model_names(self._storage):
            raise NotFoundError(f"model {name!r} is not in the store {self.url}: `nash models ls` lists what is")

    def _aliases(self, name: str) -> dict[int, tuple[str, ...]]:
        """The aliases of a model, by the version number they name now; `verify` names those that cannot be read."""
        aliases: dict[int, tuple[str, ...]] = {}
        for alias in alias_names(self._storage, name):
            number = alias_version(self._storage, name, alias)
            if number is not None:
                aliases[number] = (*aliases.get(number, ()), alias)
        return aliases

    def _manifests(self, digests: Collection[str]) -> dict[str, Manifest | ModelStoreError]:
        """Many manifests by digest, or why one cannot be read."""
        read = self._storage.read_all([keys.blob(digest) for digest in digests], LARGEST_MANIFEST_BYTES)
        found: dict[str, Manifest | ModelStoreError] = {}
        for digest, data in zip(digests, read, strict=True):
            try:
                found[digest] = (
                    read_manifest(self._storage, digest)  # which also looks in quarantine
                    if data is None
                    else parse_manifest(self._storage, digest, data)
                )
            except (CorruptStoreError, UnknownSchemaError) as error:
                found[digest] = error
        return found


def _stored(
    name: str, number: int, digest: str, manifest: Manifest, aliases: tuple[str, ...], modified: float
) -> StoredVersion:
    return StoredVersion(
        name=name,
        version=number,
        digest=digest,
        manifest=manifest,
        aliases=aliases,
        created_at=utc_text(modified),
    )


def _tell(unreadable: Callable[[str], None] | None, ref: str, error: ModelStoreError) -> None:
    if unreadable is None:
        raise error
    unreadable(f"{ref} cannot be read: {error}")


def _parsed(ref: Ref | str) -> Ref:
    return Ref.parse(ref) if isinstance(ref, str) else ref
