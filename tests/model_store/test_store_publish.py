"""Publishing, naming and finding versions in one process."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForSeq2SeqLM

from model_store.errors import CorruptStoreError, InvalidRequestError, NotFoundError, StoreAccessError
from model_store.objects.versions import commit_version
from model_store.storage.storage import Storage
from model_store.store import Store
from model_store.version.manifest import Lineage
from tests.model_store.aging import age


def test_publish_then_read_back(store: Store, model_dir: Path) -> None:
    lineage = Lineage(parent="a" * 64, data={"train": "b" * 64}, recipe={"seed": 3}, seed=3, code_version="0.1.0")
    done = store.publish("g2p", model_dir, alias="dense", lineage=lineage, metrics={"per": 5}, licence="MIT")
    assert (done.name, done.version, done.created) == ("g2p", 1, True)
    found = store.resolve("g2p:1")
    assert (found.digest, found.aliases, found.ref) == (done.digest, ("default", "dense"), "g2p:1")
    manifest = found.manifest
    assert manifest.digest == done.digest
    assert (manifest.kind, manifest.lineage, manifest.metrics, manifest.licence) == (
        "dense",
        lineage,
        {"per": 5},
        "MIT",
    )
    assert [file.path for file in manifest.files] == sorted(path.name for path in model_dir.iterdir())
    assert manifest.spec.encoder_layers == 4
    assert manifest.spec.decoder_layers == 3
    assert manifest.spec.dtype == "float32"
    assert manifest.spec.bytes == 4 * manifest.spec.parameters
    assert found.created_at.endswith("Z")
    assert store.list() == [found]


def test_parameters_are_those_that_torch_counts(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir)
    model = AutoModelForSeq2SeqLM.from_pretrained(model_dir)
    assert store.resolve("g2p").manifest.spec.parameters == sum(p.numel() for p in model.parameters())


def test_pruned_kind_comes_from_the_config(store: Store, built_compact_t5: Path) -> None:
    store.publish("g2p", built_compact_t5, alias="pruned")
    manifest = store.resolve("g2p@pruned").manifest
    assert manifest.kind == "pruned"
    assert (manifest.spec.decoder_layers, manifest.spec.dense_decoder_layers) == (1, 3)
    head, unit = 4 * 32 * 8, 2 * 32
    kept, whole = 7 * head + 75 * unit, 16 * head + 256 * unit
    assert manifest.spec.encoder_sparsity == pytest.approx(1 - kept / whole, abs=1e-6)
    with pytest.raises(InvalidRequestError, match="pruned model"):
        store.publish("g2p", built_compact_t5, kind="dense")


def test_kind_can_be_said(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir, kind="pruned")
    assert store.resolve("g2p").manifest.kind == "pruned"


def test_equal_content_makes_no_new_version(store: Store, model_dir: Path) -> None:
    first = store.publish("g2p", model_dir, metrics={"per": 5.0})
    again = store.publish("g2p", model_dir, metrics={"per": 5.0})
    assert (again.version, again.digest, again.created) == (1, first.digest, False)
    other = store.publish("g2p", model_dir, metrics={"per": 6.0})
    assert (other.version, other.created) == (2, True)
    assert store.publish("g2p", model_dir, metrics={"per": 5.0}).version == 3  # only the newest is compared
    assert store.publish("other", model_dir, metrics={"per": 5.0}).digest == first.digest


def test_two_aliases_published_in_turn_again_make_no_new_versions(store: Store, model_dir: Path) -> None:
    """As a run does that is called again: dense, then pruned, neither of them the newest when it comes."""
    for created in (True, False, False):
        for number, alias in ((1, "dense"), (2, "pruned")):
            done = store.publish("g2p", model_dir, metrics={"n": float(number)}, alias=alias)
            assert (done.version, done.created) == (number, created)
    store.tag("g2p:2", "dense")
    assert store.publish("g2p", model_dir, metrics={"n": 1.0}, alias="dense").version == 3


def test_equal_content_gives_an_equal_digest_in_another_store(model_dir: Path, tmp_path: Path) -> None:
    digests = {Store(tmp_path / name).publish("g2p", model_dir).digest for name in ("one", "two")}
    assert len(digests) == 1


def test_alias_moves_are_generations(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir, alias="live")
    store.publish("g2p", model_dir, alias="live", metrics={"n": 2.0})
    assert store.resolve("g2p@live").version == 2
    assert store.tag("g2p:1", "live").aliases == ("default", "live")
    store.tag("g2p:1", "live")  # it is there already: no new generation
    assert store.resolve("g2p@live").version == 1
    generations = sorted(path.name for path in (store.root / "models/g2p/aliases/live").iterdir())
    assert generations == ["000001", "000002", "000003"]
    assert store.tag("g2p@live", "other").aliases == ("default", "live", "other")


def test_a_bare_name_is_default_else_dense_else_the_oldest(store: Store, model_dir: Path) -> None:
    for number in (1.0, 2.0, 3.0):
        store.publish("g2p", model_dir, metrics={"n": number})
    assert store.resolve("g2p").version == 1
    store.tag("g2p:2", "dense")
    assert store.resolve("g2p").version == 1  # the first version got the alias default
    store.tag("g2p:3", "default")
    assert store.resolve("g2p").version == 3
    shutil.rmtree(store.root / "models/g2p/aliases/default")  # as in stores from before that
    assert store.resolve("g2p").version == 2
    shutil.rmtree(store.root / "models/g2p/aliases/dense")
    assert store.resolve("g2p").version == 1
    assert store.resolve("g2p:0002").version == 2


def test_tombstones_are_honoured(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir)
    store.publish("g2p", model_dir, metrics={"n": 2.0}, alias="live")
    store.untag("g2p", "live")
    tombstone = store.root / "models/g2p/tombstones/000002"
    tombstone.parent.mkdir()
    tombstone.touch()
    assert [version.version for version in store.list()] == [1]
    assert store.resolve("g2p").version == 1
    with pytest.raises(NotFoundError, match="no version 2"):
        store.resolve("g2p:2")
    again = store.publish("g2p", model_dir, metrics={"n": 2.0})
    assert (again.version, again.created) == (3, True)


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("nothing", "model 'nothing' is not in the store"),
        ("g2p:9", "no version 9: it has 1"),
        ("g2p@pruned", "no alias 'pruned': it has default, dense"),
    ],
)
def test_what_is_not_there(ref: str, message: str, store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir, alias="dense")
    for look in (store.resolve, store.verify, store.checkout, store.quality):
        with pytest.raises(NotFoundError, match=message):
            look(ref)
    with pytest.raises(NotFoundError, match=message):
        store.tag(ref, "x")


def test_a_store_that_is_not_there_is_empty(tmp_path: Path) -> None:
    store = Store(tmp_path / "nowhere")
    assert store.list() == []
    assert store.verify() == []
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "A", "-a", "a" * 65, "a\n", "a\0b", "ä", "a b", "a:1"])
def test_hostile_names(name: str, store: Store, model_dir: Path) -> None:
    with pytest.raises(InvalidRequestError):
        store.publish(name, model_dir)
    with pytest.raises(InvalidRequestError):
        store.publish("g2p", model_dir, alias=name)
    assert not store.root.exists()
    store.publish("g2p", model_dir)
    with pytest.raises(InvalidRequestError):
        store.tag("g2p", name)


def test_a_refused_directory_leaves_nothing(store: Store, model_dir: Path, edit_config: Callable[..., None]) -> None:
    edit_config(model_type="bert")
    with pytest.raises(InvalidRequestError, match="'bert'"):
        store.publish("g2p", model_dir)
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_metrics_that_are_no_numbers(store: Store, model_dir: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"metrics\.per"):
        store.publish("g2p", model_dir, metrics={"per": float("nan")})
    assert store.list() == []


def test_too_little_space(store: Store, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_store.operations.publish.free_bytes", lambda folder: 1000)
    with pytest.raises(StoreAccessError, match="1000 bytes free"):
        store.publish("g2p", model_dir)
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_a_store_that_is_a_file(tmp_path: Path, model_dir: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(InvalidRequestError, match="is a file: give the folder of a store"):
        Store(tmp_path / "store").publish("g2p", model_dir)


def test_bytes_are_on_the_disk_before_anything_names_them(
    store: Store, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    real_fsync, real_link = os.fsync, os.link
    unsynced_folders: set[int] = set()

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)
        unsynced_folders.discard(os.fstat(descriptor).st_ino)

    def link(source: Path, target: Path, **options: bool) -> None:
        assert source.stat().st_ino in synced, f"{source} is linked before it is durable"
        if target.parent.name == "versions":
            assert unsynced_folders == set(), "the commit point comes before a blob's name is durable"
        real_link(source, target, **options)
        unsynced_folders.add(target.parent.stat().st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    store.publish("g2p", model_dir, alias="dense")
    assert unsynced_folders == set()


def test_what_a_collection_took_is_linked_again(store: Store, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commit_and_collect(storage: Storage, name: str, aliased: int | None, digest: str) -> tuple[int, bool]:
        done = commit_version(storage, name, aliased, digest)
        for blob in (store.root / "blobs").rglob("*"):
            if blob.is_file():
                blob.unlink()
        return done

    monkeypatch.setattr("model_store.operations.publish.commit_version", commit_and_collect)
    store.publish("g2p", model_dir)
    assert store.verify() == []
    assert len(store.list()) == 1


def test_a_name_in_the_way_of_the_next_number_is_told(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir)
    (store.root / "models/g2p/versions/000002").mkdir()
    with pytest.raises(CorruptStoreError, match=r"versions/000002 is in the way"):
        store.publish("g2p", model_dir, metrics={"n": 2.0})
    (store.root / "models/g2p/aliases/live/000001").mkdir(parents=True)
    with pytest.raises(CorruptStoreError, match=r"live/000001 is in the way"):
        store.tag("g2p:1", "live")


def test_one_collection_at_a_time(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir)
    refused: list[str] = []

    def second(step: str) -> None:
        with pytest.raises(StoreAccessError, match="another collection is at work") as raised:
            store.collect()
        refused.append(str(raised.value))

    store.collect(say=second)
    assert refused
    assert store.collect() == []


def test_what_a_copy_went_on_with_is_as_young_as_the_copy(store: Store, model_dir: Path, tmp_path: Path) -> None:
    """A part that was left days ago must not make a blob that a collection takes at once."""
    store.publish("g2p", model_dir)
    target = Store(tmp_path / "target")
    (target.root / "tmp").mkdir(parents=True)
    for file in store.resolve("g2p").manifest.files:
        part = target.root / "tmp" / f"{file.sha256}.part"
        part.write_bytes((model_dir / file.path).read_bytes())
        part.chmod(0o444)
    age(target.root)
    store.copy_to(target, "g2p")
    assert target.collect() == []
    assert all(
        path.stat().st_mtime > time.time() - 3600 for path in (target.root / "blobs").rglob("*") if path.is_file()
    )
