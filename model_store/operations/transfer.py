"""Copy a version from one store to another: push and pull are the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model_store.errors import CorruptStoreError
from model_store.objects.blobs import REPAIR, blob_damage, read_manifest
from model_store.objects.format import check, prepare
from model_store.objects.records import read_records
from model_store.objects.versions import read_version
from model_store.operations.fetch import Progress, downloaded
from model_store.operations.place import Place
from model_store.operations.publish import Published, commit
from model_store.version.manifest import FileEntry


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One version on its way from a store to another."""

    source: Place
    target: Place
    name: str
    version: int
    alias: str | None  # to point at the version in the target
    reason: str  # for the alias's history
    progress: Progress = lambda _: None  # hears of bytes that need not be moved any more
    warn: Callable[[str], None] = lambda _: None  # hears of measurements that cannot be copied

    def run(self) -> Published:
        """Copy the version and its measurements; it gets the next number of its name in the target.

        What the target has already, whole, is not copied again, so an interrupted copy goes on where it stopped.

        Raises:
            CorruptStoreError: a file of the source is damaged.
        """
        source, target = self.source.storage, self.target.storage
        check(target)
        digest = read_version(source, self.name, self.version)
        manifest = read_manifest(source, digest)
        own = FileEntry(path="manifest", sha256=digest, size=len(manifest.canonical_bytes()))
        files = {file.sha256: file for file in (*manifest.files, own)}

        @contextmanager
        def bring(sha256: str) -> Iterator[Path]:
            with self._bring(files[sha256]) as path:
                yield path

        prepare(target)
        self._copy_records(digest)  # before an alias moves, since they decide in which dtype a server runs it
        return commit(self.target, manifest, files, bring, self.name, self.alias, self.reason, self.progress)

    @contextmanager
    def _bring(self, file: FileEntry) -> Iterator[Path]:
        """A verified local file: the source's own where the target takes any, else a copy in its workplace."""
        if self.source.remote or not self.target.remote:
            with downloaded(self.source.storage, file, self.target.storage.workplace, self.progress) as path:
                yield path
            return
        key, what = blob_damage(self.source.local, file.sha256, file.size)
        if what is not None:
            raise CorruptStoreError(f"{self.name}:{self.version}: {file.path} {what}: {REPAIR}")
        yield self.source.local.path(key)
        self.progress(file.size)

    def _copy_records(self, digest: str) -> None:
        for key, record in read_records(self.source.storage, self.name, digest):
            if isinstance(record, CorruptStoreError):
                self.warn(f"a measurement is not copied: {record}")
            elif (data := self.source.storage.read(key)) is not None:
                self.target.storage.create(key, data)
