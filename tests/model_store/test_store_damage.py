"""Damage on the disk: it is found, named, never loaded, and healed by publishing again."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from model_store.errors import CorruptStoreError, InvalidRequestError, UnknownSchemaError
from model_store.objects import keys
from model_store.objects.records import add_record
from model_store.storage.local import LocalStorage
from model_store.store import Store


def blob_of(store: Store, ref: str, path: str) -> Path:
    [entry] = [file for file in store.resolve(ref).manifest.files if file.path == path]
    return store.root / "blobs/sha256" / entry.sha256[:2] / entry.sha256


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    overwrite(path, bytes(data))


def overwrite(path: Path, data: bytes) -> None:
    """In place, as a failing disk does: every hard link sees it."""
    path.chmod(0o644)
    path.write_bytes(data)


def truncate(path: Path) -> None:
    overwrite(path, path.read_bytes()[:-1])


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped": (flip, "has sha256"),
    "truncated": (truncate, "bytes instead of"),
    "missing": (Path.unlink, "missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("path", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("opened", [False, True])
def test_bad_blob(damage: str, path: str, opened: bool, store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir, alias="dense")
    if not opened:  # as where the publishing was killed before it came to that
        shutil.rmtree(store.checkout("g2p"))
    do_damage, message = DAMAGES[damage]
    do_damage(blob_of(store, "g2p", path))

    for ref in (None, "g2p", "g2p@dense"):
        [problem] = store.verify(ref)
        assert (problem.ref, problem.file) == ("g2p:1", path)
        assert message in problem.what
    if not (opened and damage == "missing"):  # the opened directory still has the whole file
        with pytest.raises(CorruptStoreError, match=rf"g2p:1: {path} .*{message}"):
            store.checkout("g2p")

    again = store.publish("g2p", model_dir)
    assert (again.version, again.created) == (1, False)
    assert store.verify() == []
    assert (store.checkout("g2p") / path).read_bytes() == (model_dir / path).read_bytes()


def test_every_bad_file_is_named(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir)
    store.publish("g2p", model_dir, metrics={"n": 2.0})
    for path in ("config.json", "model.safetensors"):
        flip(blob_of(store, "g2p", path))
    assert [(problem.ref, problem.file) for problem in store.verify()] == [
        (f"g2p:{version}", path) for version in (1, 2) for path in ("config.json", "model.safetensors")
    ]


def test_torn_version_pointer(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir)
    pointer = store.root / "models/g2p/versions/000001"
    overwrite(pointer, pointer.read_bytes()[:20])
    with pytest.raises(CorruptStoreError, match="000001"):
        store.resolve("g2p")
    [problem] = store.verify()
    assert (problem.ref, problem.file) == ("g2p:1", "version pointer")
    again = store.publish("g2p", model_dir)
    assert (again.version, again.created) == (2, True)
    assert store.resolve("g2p:2").version == 2


def test_the_others_are_listed_beside_one_that_cannot_be_read(store: Store, model_dir: Path) -> None:
    for number in range(3):
        store.publish("g2p", model_dir, metrics={"n": float(number)})
    flip(store.root / keys.blob(store.resolve("g2p:2").digest))
    (store.root / keys.version("g2p", 3)).write_bytes(b"")
    heard: list[str] = []
    assert [version.version for version in store.list(unreadable=heard.append)] == [1]
    assert len(heard) == 2
    assert all(any(f"g2p:{number} cannot be read: " in line for line in heard) for number in (2, 3))
    with pytest.raises(CorruptStoreError):
        store.list()


def test_records_that_are_too_large_or_copied(store: Store, model_dir: Path, tmp_path: Path) -> None:
    store.publish("g2p", model_dir)
    storage, digest = LocalStorage(store.root), store.resolve("g2p").digest
    folder = store.root / keys.measurements("g2p", digest)
    for number, at in enumerate(("2026-11-29T10:00:00Z", "2026-11-28T10:00:00Z")):  # copied the other way round
        assert add_record(storage, "g2p", digest, {"kind": "new", "at": at}, {"n": number})
        made = 1_000_000_000 + number
        for path in folder.iterdir():
            if path.read_text().find(at) >= 0:
                os.utime(path, (made, made))
    assert [record["at"] for record in store.records("g2p")] == ["2026-11-28T10:00:00Z", "2026-11-29T10:00:00Z"]
    with pytest.raises(InvalidRequestError, match="at most 65536"):
        add_record(storage, "g2p", digest, {"kind": "x" * (1 << 16)}, {"n": 3})
    (folder / ("f" * 64)).write_bytes(b"x" * ((1 << 16) + 1))
    [problem] = store.verify("g2p")
    assert (problem.file, "has more than 65536 bytes" in problem.what) == ("measurement", True)
    assert len(store.records("g2p")) == 2


def test_torn_alias_pointer(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir, alias="dense")
    overwrite(store.root / "models/g2p/aliases/dense/000001", b'{"version": 1, "rea')
    with pytest.raises(CorruptStoreError, match="aliases/dense/000001"):
        store.resolve("g2p@dense")
    [problem] = store.verify()
    assert (problem.ref, problem.file) == ("g2p@dense", "alias pointer")
    store.publish("g2p", model_dir, alias="dense")
    assert store.resolve("g2p@dense").version == 1
    (store.root / "models/g2p/aliases/dense/000001").unlink()  # the other half of the remedy
    assert store.verify() == []


def test_alias_of_a_version_that_is_gone(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir, alias="dense")
    store.publish("g2p", model_dir, metrics={"n": 2.0})
    (store.root / "models/g2p/versions/000001").unlink()
    assert [(problem.ref, problem.file) for problem in store.verify()] == [
        (f"g2p@{alias}", "alias pointer") for alias in ("default", "dense")
    ]


@pytest.mark.parametrize("do_damage", [flip, truncate, Path.unlink])
def test_bad_manifest(do_damage: Callable[[Path], None], store: Store, model_dir: Path) -> None:
    digest = store.publish("g2p", model_dir).digest
    do_damage(store.root / "blobs/sha256" / digest[:2] / digest)
    with pytest.raises(CorruptStoreError, match=digest):
        store.resolve("g2p")
    [problem] = store.verify()
    assert (problem.ref, problem.file) == ("g2p:1", "manifest")
    assert store.publish("g2p", model_dir).created is False
    assert store.resolve("g2p").digest == digest


def test_manifest_of_a_newer_program(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir)
    data = b'{"schema_version":2,"something":"new"}'
    digest = hashlib.sha256(data).hexdigest()
    blob = store.root / "blobs/sha256" / digest[:2] / digest
    blob.parent.mkdir(exist_ok=True)
    blob.write_bytes(data)
    (store.root / "models/g2p/versions/000002").write_text(f"{digest}\n")
    with pytest.raises(UnknownSchemaError, match="schema 2"):
        store.resolve("g2p:2")
    assert [problem.ref for problem in store.verify()] == ["g2p:2"]
    assert store.resolve("g2p:1").version == 1


def test_a_damaged_copy_in_the_view_is_healed_from_the_blob(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir)
    path = store.checkout("g2p") / "config.json"
    path.unlink()
    path.write_text("{}")
    assert (store.checkout("g2p") / "config.json").read_bytes() == (model_dir / "config.json").read_bytes()


def test_foreign_file_in_the_view(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir)
    (store.checkout("g2p") / "modeling_g2p.py").write_text("print('hello')")
    with pytest.raises(CorruptStoreError, match=r"modeling_g2p\.py is not part"):
        store.checkout("g2p")


def test_checkout_of_an_opened_version_writes_nothing(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir)
    view = store.checkout("g2p")
    (store.root / "tmp").rmdir()
    assert store.checkout("g2p") == view
    assert not (store.root / "tmp").exists()


def test_checkout_is_read_only_and_loads(store: Store, model_dir: Path) -> None:
    store.publish("g2p", model_dir)
    view = store.checkout("g2p")
    assert all(path.stat().st_mode & 0o222 == 0 for path in view.iterdir())
    ours, theirs = (AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict() for folder in (view, model_dir))
    assert all(bool((ours[name] == theirs[name]).all()) for name in theirs)
    assert AutoTokenizer.from_pretrained(view)("abc")["input_ids"] == [3, 4, 5, 1]


def test_the_remedies_work(store: Store, model_dir: Path) -> None:
    """An alias that cannot be read is tagged again, a version that cannot be read is removed; the rest is seen."""
    for number in (1.0, 2.0, 3.0):
        store.publish("g2p", model_dir, metrics={"n": number}, alias="live")
    overwrite(store.root / "models/g2p/aliases/live/000003", b"{")
    assert [version.aliases for version in store.list()] == [("default",), (), ()]
    with pytest.raises(CorruptStoreError, match="cannot be read: tag the alias again"):
        store.rollback("g2p", "live")
    assert store.tag("g2p:2", "live").aliases == ("live",)
    (store.root / "models/g2p/aliases/live/000003").unlink()
    overwrite(store.root / "models/g2p/versions/000003", b"torn")
    assert store.remove("g2p:3").digest is None
    assert [version.version for version in store.list()] == [1, 2]
    assert store.verify() == []
    assert store.collect() == []
