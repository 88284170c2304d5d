"""Free what no version needs: blobs, views and what killed processes left.

Blobs that nothing refers to and that are older than the grace period go into quarantine; from there, what a version
needs after all comes back, and what is still older than the grace period is deleted. On a local disk a blob keeps its
age in quarantine and goes at once; on object storage its age begins anew, and a later collection deletes it. So a blob
that a publisher has put or found young is never deleted before the publisher has committed, nor after.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model_store.errors import CorruptStoreError, UnknownSchemaError
from model_store.objects import keys
from model_store.objects.aliases import named_versions
from model_store.objects.blobs import GRACE_SECONDS, read_manifest
from model_store.objects.numbered import numbered
from model_store.objects.versions import model_names, parse_version
from model_store.operations.lease import Hold, alone
from model_store.operations.place import Place
from model_store.storage.files import in_use
from model_store.storage.storage import Entry, Storage

_READ_AT_ONCE = 256  # pointers
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """One thing that a collection took, or would take: a blob, a view, or what a killed process left."""

    kind: str  # "blob", "view" or "leftover"
    name: str
    size: int  # bytes; 0 for a view, whose files are blobs too
    deleted: bool  # false for what waits in quarantine


def collect(
    place: Place, *, dry_run: bool, grace_seconds: float = GRACE_SECONDS, say: Callable[[str], None] = lambda _: None
) -> list[Garbage]:
    """Free what no version needs and what is older than the grace period; `say` hears of each step.

    Raises:
        CorruptStoreError: a pointer or a manifest cannot be read, so nobody knows what is needed; nothing is deleted.
        UnknownSchemaError: a newer program wrote one; nothing is deleted.
        StoreAccessError: another collection is at work.
    """
    limit = time.time() - grace_seconds
    if dry_run:
        say("looking for what versions need")
        return _found(place, limit)
    with alone(place) as hold:
        return _collect(place, limit, say, hold)


def _found(place: Place, limit: float) -> list[Garbage]:
    """What would go now."""
    needed = _needed(place.storage, limit, lambda: None)
    return [
        *_old_blobs(place, needed, limit),
        *(Garbage(kind="view", name=path.name, size=0, deleted=True) for path in _unneeded_views(place, needed, limit)),
        *(
            Garbage(kind="leftover", name=path.name, size=_size(path), deleted=True)
            for path in _leftovers(place.local.workplace, limit)
        ),
    ]


def _collect(place: Place, limit: float, say: Callable[[str], None], hold: Hold) -> list[Garbage]:
    storage = place.storage
    say("looking for what versions need")
    found = list(_old_blobs(place, _needed(storage, limit, hold), limit))
    for each in found:
        there = storage.stat(keys.blob(each.name))
        if there is not None and there.modified < limit:  # a publisher may have made it young since
            say(f"into quarantine: {each.name[:12]}")
            hold()
            storage.move(keys.blob(each.name), keys.quarantined(each.name))
    needed = _needed(storage, limit, hold)  # again: a version may have been published meanwhile
    # Where a move gives no age, what has just been moved is as young as can be, whatever the resolution of its clock.
    moved = {each.name for each in found if not each.deleted}
    deleted = set(_empty_quarantine(storage, needed | moved, needed, limit, hold))
    done = [
        Garbage(kind="blob", name=each.name, size=each.size, deleted=each.name in deleted)
        for each in found
        if each.name not in needed
    ]
    paths = [("view", path) for path in _unneeded_views(place, needed, limit)]
    paths += [("leftover", path) for path in _leftovers(place.local.workplace, limit)]
    for kind, path in paths:
        size = 0 if kind == "view" else _size(path)
        if _cleared(path):
            done.append(Garbage(kind=kind, name=path.name, size=size, deleted=True))
        else:
            say(f"{path} cannot be deleted: delete it as a user who can")
    return done


def _cleared(path: Path) -> bool:
    """Delete a file or a folder; return whether it is gone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
    return not os.path.lexists(path)


def _needed(storage: Storage, limit: float, hold: Hold) -> set[str]:
    """The sha256 of every blob that a version needs.

    Of the versions that were removed, those that an alias names still count, and those removed after `limit`: whoever
    removes one, or names it at that moment, may not have looked yet what the other did.
    """
    needed: set[str] = set()
    expanded: set[str] = set()  # a manifest may be needed as the file of another version, and still have files itself
    for name in model_names(storage):
        named = set(named_versions(storage, name).values())
        tombstones = numbered(storage, keys.tombstones(name))
        buried = {number: entry for number, entry in tombstones.items() if number not in named}
        long_buried = {number for number, entry in buried.items() if entry.modified < limit}
        wanted = sorted(numbered(storage, keys.versions(name)).keys() - long_buried)
        for first in range(0, len(wanted), _READ_AT_ONCE):
            hold()
            numbers = wanted[first : first + _READ_AT_ONCE]
            pointers = [keys.version(name, number) for number in numbers]
            for number, key, data in zip(numbers, pointers, storage.read_all(pointers), strict=True):
                try:
                    digest = parse_version(storage, key, data)
                    if digest in expanded:
                        continue
                    manifest = read_manifest(storage, digest)
                except (CorruptStoreError, UnknownSchemaError) as error:
                    if number in buried:
                        continue  # removing it was the remedy
                    raise type(error)(
                        f"nothing is collected, for {name}:{number} might need anything: {error}; or remove it with "
                        f"`nash models rm {name}:{number}`, after `nash models untag` if an alias names it"
                    ) from None
                expanded.add(digest)
                needed.add(digest)
                needed.update(file.sha256 for file in manifest.files)
    return needed


def _old_blobs(place: Place, needed: set[str], limit: float) -> Iterator[Garbage]:
    storage = place.storage
    for prefix in storage.folders(keys.BLOBS):
        for entry in storage.entries(f"{keys.BLOBS}/{prefix}"):
            ours = _SHA256.fullmatch(entry.name) and entry.name.startswith(prefix)
            if ours and entry.name not in needed and entry.modified < limit:
                yield Garbage(kind="blob", name=entry.name, size=entry.size, deleted=not place.remote)
    for entry in _quarantined(storage):
        if entry.name not in needed and entry.modified < limit:
            yield Garbage(kind="blob", name=entry.name, size=entry.size, deleted=True)


def _quarantined(storage: Storage) -> list[Entry]:
    return [entry for entry in storage.entries(keys.QUARANTINE) if _SHA256.fullmatch(entry.name)]


def _empty_quarantine(storage: Storage, kept: set[str], needed: set[str], limit: float, hold: Hold) -> Iterator[str]:
    """Bring back what is needed, delete what is old and not to be kept; yield the names of the latter."""
    for entry in _quarantined(storage):
        hold()
        key, place = keys.quarantined(entry.name), keys.blob(entry.name)
        if entry.name in needed:
            if storage.stat(place) is None:
                storage.move(key, place)
            else:
                storage.delete(key)
        elif entry.name not in kept and entry.modified < limit:
            storage.delete(key)
            yield entry.name


def _unneeded_views(place: Place, needed: set[str], limit: float) -> list[Path]:
    views = [place.local.path(f"{keys.VIEWS}/{digest}") for digest in place.local.folders(keys.VIEWS)]
    return [path for path in views if path.name not in needed and _newest(path) < limit and not in_use(path)]


def _leftovers(workplace: Path, limit: float) -> list[Path]:
    """Work in progress of processes that are no more, judged by its age."""
    if not workplace.is_dir():
        return []
    return [path for path in workplace.iterdir() if _newest(path) < limit and not in_use(path)]


def _newest(path: Path) -> float:
    try:
        inside = [each.lstat().st_mtime for each in path.rglob("*")] if path.is_dir() else []
        return max([path.lstat().st_mtime, *inside])
    except FileNotFoundError:  # its owner has just cleared it
        return float("inf")


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.lstat().st_size for each in files if each.is_file())
