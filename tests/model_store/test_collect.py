"""What a collection must leave, and what it may take."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from model_store.errors import CorruptStoreError, InvalidRequestError, NotFoundError
from model_store.objects import keys
from model_store.objects.aliases import move_alias
from model_store.objects.versions import bury
from model_store.operations.cache import evict
from model_store.storage.files import held
from model_store.storage.local import LocalStorage
from model_store.storage.storage import Entry
from model_store.store import Store
from tests.model_store.aging import age


def changed(model: Path, folder: Path, extra: bytes) -> Path:
    """A copy of a model with one file more."""
    shutil.copytree(model, folder)
    (folder / "extra.json").write_bytes(extra)
    return folder


def test_a_manifest_that_is_also_a_file_of_another_version_keeps_its_own_files(
    store: Store, model_dir: Path, tmp_path: Path
) -> None:
    store.publish("z", changed(model_dir, tmp_path / "z", b"{}"))
    manifest = (store.root / keys.blob(store.resolve("z").digest)).read_bytes()
    store.publish("a", changed(model_dir, tmp_path / "a", manifest))
    age(store.root)
    store.collect()
    assert store.verify() == []
    assert (store.checkout("z") / "extra.json").read_bytes() == b"{}"


def test_what_was_removed_a_moment_ago_is_left(store: Store, model_dir: Path) -> None:
    for number in range(3):
        store.publish("g2p", model_dir, metrics={"n": float(number)})
    digest = store.resolve("g2p:2").digest
    age(store.root)
    store.remove("g2p:2")
    assert not any(each.kind == "blob" for each in store.collect())
    age(store.root)
    assert [each.name for each in store.collect() if each.kind == "blob"] == [digest]


@pytest.mark.parametrize("removed_first", [False, True])
def test_a_removal_that_died_before_its_second_look_loses_nothing(
    removed_first: bool, store: Store, model_dir: Path
) -> None:
    for number in range(3):
        store.publish("g2p", model_dir, metrics={"n": float(number)})
    storage = LocalStorage(store.root)
    if removed_first:  # the mover had looked before
        bury(storage, "g2p", 2, "rm")
        storage.create(
            keys.generation("g2p", "live", 1),
            json.dumps({"version": 2, "reason": "tag", "at": "2026-11-29T10:00:00Z"}).encode(),
        )
    else:
        move_alias(storage, "g2p", "live", 2, "tag")
        bury(storage, "g2p", 2, "rm")
    age(store.root)
    store.collect()
    assert store.resolve("g2p@live").version == store.resolve("g2p:2").version == 2
    assert [version.version for version in store.list()] == [1, 2, 3]
    assert store.verify() == []
    with pytest.raises(InvalidRequestError, match="g2p@live names g2p:2"):
        store.remove("g2p:2")
    store.untag("g2p", "live")
    with pytest.raises(NotFoundError, match="no version 2"):
        store.resolve("g2p:2")


def test_work_in_progress_and_views_that_are_held_are_left(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir)
    store.publish("g2p", model_dir, metrics={"n": 2.0})
    view = store.checkout("g2p:2")
    store.remove("g2p:2")
    with store.work_folder() as folder, held(view):
        (folder / "model").write_text("half of it")
        age(store.root)
        assert [each.kind for each in store.collect()] == ["blob"]
        assert view.is_dir()
        assert (folder / "model").exists()
    age(store.root)
    assert [each.kind for each in store.collect()] == ["view"]


def test_a_cache_keeps_the_views_that_are_held(store: Store, model_dir: Path) -> None:
    """As a cache of a store far away, which its own `evict` bounds."""
    for number in range(3):
        store.publish("g2p", model_dir, metrics={"n": float(number)})
    views = [store.checkout(f"g2p:{number}") for number in (1, 2, 3)]
    age(store.root)
    with held(views[1]):
        evict(LocalStorage(store.root), 0)
    assert [view.is_dir() for view in views] == [False, True, False]


class Moving(LocalStorage):
    """A store in which a collection moves a blob between any two looks at it: away, or back."""

    moved = ""

    def stat(self, key: str) -> Entry | None:
        found = super().stat(key)
        if self.moved and key == keys.blob(self.moved) and found is None:
            self.move(keys.quarantined(self.moved), key)
        return found

    def read(self, key: str, most_bytes: int = 1 << 16) -> bytes | None:
        data = super().read(key, most_bytes)
        if self.moved and key == keys.blob(self.moved) and data is None:
            self.move(keys.quarantined(self.moved), key)
        return data


def test_a_reader_looks_again_where_a_blob_is_just_brought_back(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir)
    storage = Moving(store.root)
    object.__setattr__(store._place, "storage", storage)
    digest = store.resolve("g2p").digest
    [weights] = [file for file in store.resolve("g2p").manifest.files if file.path == "model.safetensors"]
    for storage.moved in (digest, weights.sha256):
        for read in (lambda: store.resolve("g2p").version, store.verify, lambda: store.checkout("g2p").is_dir()):
            storage.move(keys.blob(storage.moved), keys.quarantined(storage.moved))
            read()
    assert store.verify() == []


@pytest.mark.parametrize(
    ("spoil", "heard"),
    [
        (lambda path: path.write_bytes(b"x" * 70_000), "has more than 65536 bytes"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder, not an object: move it away"),
        (lambda path: path.write_bytes(b""), "remove the version with `nash models rm`"),
    ],
)
def test_a_spoilt_pointer_is_told_and_the_remedy_works(
    spoil: Callable[[Path], object], heard: str, store: Store, model_dir: Path
) -> None:
    for number in range(3):
        store.publish("g2p", model_dir, metrics={"n": float(number)})
    spoil(store.root / keys.version("g2p", 2))
    unreadable: list[str] = []
    assert 1 in [version.version for version in store.list(unreadable=unreadable.append)]
    if "folder" in heard:  # it is no version any more, and says so nowhere
        return
    assert heard in unreadable[0]
    with pytest.raises(CorruptStoreError, match="or remove it with `nash models rm g2p:2`"):
        store.collect()
    store.remove("g2p:2")
    age(store.root)
    store.collect()
    assert store.verify() == []


def test_a_rollback_stops_at_a_move_that_cannot_be_read(store: Store, model_dir: Path) -> None:
    for number in range(4):
        store.publish("g2p", model_dir, metrics={"n": float(number)})
        store.tag(f"g2p:{number + 1}", "live")
    (store.root / keys.generation("g2p", "live", 2)).chmod(0o644)
    (store.root / keys.generation("g2p", "live", 2)).write_text("spoilt")
    heard: list[str] = []
    assert [move.version for move in store.history("g2p", "live", unreadable=heard.append)["live"]] == [1, 3, 4]
    assert "a move of g2p@live cannot be read" in heard[0]
    [problem] = store.verify()
    assert (problem.ref, "000002 cannot be read" in problem.what) == ("g2p@live", True)
    assert store.rollback("g2p", "live").version == 3
    with pytest.raises(CorruptStoreError, match="000002 cannot be read"):
        store.rollback("g2p", "live")
    (store.root / keys.generation("g2p", "live", 2)).unlink()  # what the message says
    assert store.rollback("g2p", "live").version == 1
    assert store.verify() == []


def test_records_are_copied_before_the_alias_moves_and_bad_ones_are_left(
    store: Store, model_dir: Path, tmp_path: Path
) -> None:
    store.publish("g2p", model_dir)
    folder = store.root / keys.measurements("g2p", store.resolve("g2p").digest)
    folder.mkdir(parents=True)
    (folder / ("a" * 64)).write_text('{"kind": "mine"}')
    (folder / ("b" * 64)).write_bytes(b"x" * 70_000)
    (folder / "notes").write_text('{"kind": "mine"}')
    target = Store(tmp_path / "other")
    warned: list[str] = []
    assert store.copy_to(target, "g2p", alias="live", warn=warned.append).created
    assert [record["kind"] for record in target.records("g2p@live")] == ["mine"]
    assert len(warned) == 2
    with pytest.raises(InvalidRequestError, match="name another one"):
        store.copy_to(Store(store.root / ".." / store.root.name), "g2p")


@pytest.mark.parametrize(
    ("url", "message"),
    [("s3:/models/prod", "is no place"), ("s3://[x", "is not the URL"), ("s3://b/p?x=1", "is not the URL")],
)
def test_places_that_are_none(url: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        Store(url)


def test_numbers_end(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir)
    pointer = (store.root / keys.version("g2p", 1)).read_bytes()
    (store.root / keys.version("g2p", keys.LAST_NUMBER)).write_bytes(pointer)
    with pytest.raises(CorruptStoreError, match="have come to their end"):
        store.publish("g2p", model_dir, metrics={"n": 2.0})
