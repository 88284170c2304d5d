"""The store on object storage, against a real S3 server: the same protocol, the same races and kills."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import obstore
import pytest

from model_store.errors import CorruptStoreError, InvalidRequestError, NotFoundError, StoreAccessError
from model_store.find import find_model
from model_store.objects import keys
from model_store.storage import s3
from model_store.storage.s3 import S3Storage
from model_store.store import Store
from tests.model_store.cut_network import Relay
from tests.model_store.object_storage import BUCKET, running_storage
from tests.model_store.store_driver import drive
from tests.running_server import RunningServer


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with running_storage(tmp_path_factory.mktemp("weed") / "data") as variables:
        before = dict(os.environ)
        os.environ.update(variables)
        yield variables
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def store(storage: dict[str, str]) -> Store:
    return Store(f"s3://{BUCKET}/{uuid.uuid4().hex}")


def clear_cache(store: Store) -> None:
    """As on another machine, where nothing has been fetched yet."""
    shutil.rmtree(store.root, ignore_errors=True)


def storage_of(store: Store) -> S3Storage:
    return S3Storage(store.url, store.root)


def test_publish_resolve_and_load_elsewhere(store: Store, built_t5: Path) -> None:
    done = store.publish("g2p", built_t5, alias="dense", metrics={"per": 5.0})
    assert (done.version, done.created) == (1, True)
    again = store.publish("g2p", built_t5, alias="dense", metrics={"per": 5.0})
    assert (again.version, again.created) == (1, False)
    clear_cache(store)
    found = store.resolve("g2p")
    assert (found.digest, found.aliases) == (done.digest, ("default", "dense"))
    assert store.list() == [found]
    view = store.checkout("g2p@dense")
    assert view.is_relative_to(store.root)
    assert {path.name: path.read_bytes() for path in view.iterdir()} == {
        path.name: path.read_bytes() for path in built_t5.iterdir()
    }
    assert find_model("g2p@dense", store).model.folder == view
    assert store.verify() == []


def test_aliases_rollback_and_removal(store: Store, built_t5: Path) -> None:
    for number in range(3):
        store.publish("g2p", built_t5, alias="live", metrics={"n": float(number)})
    assert store.rollback("g2p", "live").version == 2
    assert store.rollback("g2p", "live").version == 1
    assert [move.version for move in store.history("g2p", "live")["live"]] == [1, 2, 3, 2, 1]
    store.remove("g2p:3")
    with pytest.raises(NotFoundError, match="no version 3: it has 1 to 2"):
        store.resolve("g2p:3")
    store.untag("g2p", "live")
    with pytest.raises(NotFoundError, match="no alias 'live'"):
        store.resolve("g2p@live")


def test_a_collection_deletes_on_a_later_day(store: Store, built_t5: Path) -> None:
    store.publish("g2p", built_t5)
    store.publish("g2p", built_t5, metrics={"n": 2.0})
    digest = store.resolve("g2p:2").digest
    store.remove("g2p:2")
    assert store.collect() == []  # too young
    [quarantined] = store.collect(grace_seconds=0)
    assert (quarantined.kind, quarantined.name, quarantined.deleted) == ("blob", digest, False)
    [deleted] = store.collect(grace_seconds=-1)
    assert (deleted.name, deleted.deleted) == (digest, True)
    assert storage_of(store).entries(keys.QUARANTINE) == []
    assert store.verify() == []


def test_what_is_published_again_comes_back_from_quarantine(store: Store, built_t5: Path) -> None:
    store.publish("g2p", built_t5)
    store.untag("g2p", "default")
    store.remove("g2p:1")
    assert not all(each.deleted for each in store.collect(grace_seconds=0))
    store.publish("g2p", built_t5)
    store.collect(grace_seconds=-1)
    clear_cache(store)
    assert store.checkout("g2p").is_dir()
    assert store.verify() == []


def test_push_and_pull(store: Store, built_t5: Path, tmp_path: Path) -> None:
    local, third = Store(tmp_path / "local"), Store(tmp_path / "third")
    local.publish("g2p", built_t5, alias="dense", metrics={"n": 1.0})
    digest = local.resolve("g2p").digest
    moved: list[int] = []
    pushed = local.copy_to(store, "g2p@dense", alias="live", progress=moved.append)
    assert (pushed.version, pushed.digest, pushed.created) == (1, digest, True)
    assert sum(moved) == local.resolve("g2p").manifest.stored_bytes
    assert not local.copy_to(store, "g2p@dense", alias="live").created
    clear_cache(store)
    pulled = store.copy_to(third, "g2p@live", alias="dense")
    assert (pulled.version, pulled.digest) == (1, digest)
    assert third.verify() == []
    assert store.resolve("g2p@live").digest == third.resolve("g2p@dense").digest
    other = Store(f"{store.url}/other")
    assert store.copy_to(other, "g2p").digest == digest
    assert other.verify() == []


def test_an_interrupted_download_goes_on(store: Store, built_t5: Path) -> None:
    store.publish("g2p", built_t5)
    clear_cache(store)
    [weights] = [file for file in store.resolve("g2p").manifest.files if file.path == "model.safetensors"]
    partial = store.root / "tmp" / f"{weights.sha256}.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes((built_t5 / "model.safetensors").read_bytes()[:100_000])
    asked: list[int] = []

    class Watched(S3Storage):
        def stream(self, key: str, offset: int = 0) -> Iterator[bytes]:
            asked.append(offset)
            return super().stream(key, offset)

    object.__setattr__(store._place, "storage", Watched(store.url, store.root))
    assert (store.checkout("g2p") / "model.safetensors").stat().st_size == weights.size
    assert 100_000 in asked
    assert not partial.exists()


def test_a_download_that_was_spoilt_is_thrown_away(store: Store, built_t5: Path) -> None:
    store.publish("g2p", built_t5)
    clear_cache(store)
    [weights] = [file for file in store.resolve("g2p").manifest.files if file.path == "model.safetensors"]
    partial = store.root / "tmp" / f"{weights.sha256}.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 100_000)
    assert (store.checkout("g2p") / "model.safetensors").stat().st_size == weights.size


def test_a_damaged_blob_is_named_and_healed_by_publishing(store: Store, built_t5: Path) -> None:
    store.publish("g2p", built_t5)
    [weights] = [file for file in store.resolve("g2p").manifest.files if file.path == "model.safetensors"]
    data = bytearray((built_t5 / "model.safetensors").read_bytes())
    data[-1] ^= 1
    obstore.put(storage_of(store)._store, keys.blob(weights.sha256), bytes(data))
    clear_cache(store)
    [problem] = store.verify()
    assert (problem.ref, problem.file) == ("g2p:1", "model.safetensors")
    with pytest.raises(CorruptStoreError, match=r"model\.safetensors"):
        store.checkout("g2p")
    assert not store.publish("g2p", built_t5).created
    assert store.verify() == []


def test_the_cache_is_bounded(store: Store, built_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.model_store.aging import age

    for number in range(3):
        changed = store.root.parent / f"model-{number}-{uuid.uuid4().hex}"
        shutil.copytree(built_t5, changed)
        (changed / "notes.txt").write_text(str(number))
        store.publish("g2p", changed)
    size = store.resolve("g2p").manifest.stored_bytes
    for number in (1, 2):
        store.checkout(f"g2p:{number}")
        age(store.root, 3600 * (4 - number))
    monkeypatch.setenv("NASH_CACHE_BYTES", str(size // 2))
    third = store.checkout("g2p:3")
    assert [path.name for path in (store.root / "views").iterdir()] == [third.name]
    monkeypatch.setenv("NASH_CACHE_BYTES", "much")
    with pytest.raises(InvalidRequestError, match="NASH_CACHE_BYTES is 'much'"):
        store.checkout("g2p:3")


def test_storage_that_does_not_exclude_is_refused(
    store: Store, built_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = obstore.put
    monkeypatch.setattr(obstore, "put", lambda *args, **kwargs: real(*args, **kwargs | {"mode": "overwrite"}))
    with pytest.raises(StoreAccessError, match="does not exclude"):
        store.publish("g2p", built_t5)
    monkeypatch.undo()
    assert store.list() == []


def test_a_request_sent_again_finds_its_own_object(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer was lost, so the client asks twice, and the storage refuses the second as a conflict."""
    real, storage = obstore.put, storage_of(store)
    storage.check_exclusion()

    def twice(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(obstore, "put", twice)
    assert storage.create("models/g2p/versions/000001", b"one")
    assert not storage.create("models/g2p/versions/000001", b"two")
    assert storage.read("models/g2p/versions/000001") == b"one"


def test_an_object_too_large_to_be_copied_is_moved(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, data = storage_of(store), os.urandom(1 << 20)
    monkeypatch.setattr(s3, "_LARGEST_COPY_BYTES", 1 << 19)
    obstore.put(storage._store, "blobs/one", data)
    assert storage.move("blobs/one", "quarantine/one")
    assert storage.stat("blobs/one") is None
    assert storage.read("quarantine/one", 1 << 20) == data
    assert not storage.move("blobs/one", "quarantine/one")


def test_two_collections_do_not_work_at_once(store: Store, built_t5: Path) -> None:
    store.publish("g2p", built_t5)
    again: list[str] = []

    def collect_too(_: str) -> None:
        with pytest.raises(StoreAccessError, match="another collection is at work") as refused:
            Store(store.url).collect()
        again.append(str(refused.value))

    store.collect(say=collect_too)
    assert again
    assert storage_of(store).entries(keys.COLLECTIONS) == []
    assert store.collect() == []


@pytest.mark.parametrize(
    ("url", "variables", "message"),
    [
        ("s3://", {}, "is not the URL of a store"),
        (f"s3://{BUCKET}?x=1", {}, "is not the URL of a store"),
        ("gs://bucket", {}, "give a folder, or s3://BUCKET/PREFIX"),
        ("s3://other-bucket/x", {}, "there is no such bucket: create it"),
        (f"s3://{BUCKET}/x", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "access denied"),
    ],
)
def test_what_cannot_be_used(
    url: str, variables: dict[str, str], message: str, storage: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((InvalidRequestError, StoreAccessError), match=message):
        Store(url).list()


def test_eight_publishers(store: Store, built_t5: Path, storage: dict[str, str]) -> None:
    job = {"op": "publish", "store": store.url, "directory": str(built_t5), "alias": "last", "s3": storage}
    results = drive([{**job, "metrics": {"n": float(n)}} for n in range(8)])
    assert sorted(version for version, _, _ in results) == list(range(1, 9))
    assert store.resolve("g2p@last").version in range(1, 9)
    assert store.verify() == []


@pytest.mark.slow
def test_eight_publishers_of_twenty_versions_each(store: Store, built_t5: Path, storage: dict[str, str]) -> None:
    job = {"op": "publish many", "store": store.url, "directory": str(built_t5), "times": 20, "alias": "last"}
    results = drive([{**job, "writer": float(writer), "s3": storage} for writer in range(8)], timeout_s=1800)
    assert sorted(number for numbers in results for number in numbers) == list(range(1, 161))
    moves = store.history("g2p", "last")["last"]
    assert [move.generation for move in moves] == list(range(1, len(moves) + 1))
    assert {move.version for move in moves} == set(range(1, 161))
    assert store.verify() == []


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_a_network_that_is_cut(
    direction: str,
    store: Store,
    built_t5: Path,
    storage: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At several places of a copy: an error in words, nothing torn, and the same command goes on when it is mended."""
    monkeypatch.setenv("NASH_S3_RETRY_S", "0.2")
    local = Store(tmp_path / "local")
    local.publish("g2p", built_t5, metrics={"n": 1.0})
    if direction == "pull":
        local.copy_to(store, "g2p")
    with Relay(storage["AWS_ENDPOINT_URL"]) as relay:
        monkeypatch.setenv("AWS_ENDPOINT_URL", relay.endpoint)
        monkeypatch.setenv("NASH_CACHE", str(tmp_path / "cache"))
        size = local.resolve("g2p").manifest.stored_bytes
        for share in (0.0, 0.2, 0.6, 0.95):
            far = Store(store.url)
            target = Store(tmp_path / "pulled") if direction == "pull" else far
            relay.cut_after(1 + round(share * size))
            with pytest.raises(StoreAccessError) as raised:
                (far if direction == "pull" else local).copy_to(target, "g2p")
            assert store.url in str(raised.value)
            assert "\n" not in str(raised.value)
            relay.mend()
            assert target.verify() == []
            assert target.list() == []
        far = Store(store.url)
        target = Store(tmp_path / "pulled") if direction == "pull" else far
        assert (far if direction == "pull" else local).copy_to(target, "g2p").created
        assert target.verify() == []


def test_a_server_loads_from_it(store: Store, built_t5: Path) -> None:
    store.publish("tiny", built_t5, alias="dense")
    clear_cache(store)
    with RunningServer("--store", store.url, "--model", "tiny@dense,threads=1") as server:
        answer = httpx.post(f"{server.url}/generate", json={"inputs": "abc", "parameters": {"max_new_tokens": 3}})
        assert answer.status_code == 200, answer.text
        [model] = httpx.get(f"{server.url}/models").json()
        assert model["digest"] == store.resolve("tiny@dense").digest


KILLED: dict[str, Callable[[Store, Path], dict[str, Any]]] = {
    "publish": lambda store, model: {"op": "publish", "directory": str(model), "alias": "live", "metrics": {"n": 9.0}},
    "tag": lambda store, model: {"op": "tag", "ref": "g2p:2", "alias": "live"},
    "rm": lambda store, model: {"op": "rm", "ref": "g2p:3"},
    "gc": lambda store, model: {"op": "gc", "grace_s": -1.0},
    "pull": lambda store, model: {"op": "copy", "ref": "g2p:2"},
    "push": lambda store, model: {"op": "copy", "ref": "g2p:1", "alias": "live"},
}


@pytest.mark.slow
@pytest.mark.parametrize("operation", KILLED)
def test_kill_at_every_point(operation: str, built_t5: Path, storage: dict[str, str], tmp_path: Path) -> None:
    def prepared(name: str) -> dict[str, Any]:
        store = Store(f"s3://{BUCKET}/{uuid.uuid4().hex}")
        for number in range(1, 5):
            store.publish("g2p", built_t5, metrics={"n": float(number)})
        store.remove("g2p:4")
        job = KILLED[operation](store, built_t5) | {"s3": storage}
        if operation == "push":
            return job | {"store": str(filled.root), "target": store.url}
        target = {"target": str(tmp_path / name)} if operation == "pull" else {}
        return job | {"store": store.url} | target

    def changed(job: dict[str, Any]) -> Store:
        return Store(job["target" if operation == "push" else "store"])

    filled = Store(tmp_path / "filled")
    filled.publish("g2p", built_t5, alias="dense", metrics={"n": 9.0})
    [counted] = drive([prepared("counted") | {"count": True}])
    points = counted["points"]
    jobs = [prepared(str(point)) | {"kill_at": point} for point in range(points)]
    assert drive(jobs, at_once=4) == ["killed"] * points
    for killed in jobs:
        store = changed(killed)
        assert store.verify() == []
        for version in store.list():
            assert store.checkout(version.ref).is_dir()
    again = drive([{key: value for key, value in each.items() if key != "kill_at"} for each in jobs], at_once=4)
    for killed, result in zip(jobs, again, strict=True):
        assert not isinstance(result, dict) or operation == "rm", result
        store = changed(killed)
        assert store.verify() == []
        live = {"publish": [1, 2, 3, 5], "push": [1, 2, 3, 5], "rm": [1, 2]}.get(operation, [1, 2, 3])
        assert [version.version for version in store.list()] == live
        if operation in ("publish", "push"):
            assert store.resolve("g2p@live").version == 5
        if operation == "pull":
            assert Store(killed["target"]).verify() == []
            assert len(Store(killed["target"]).list()) == 1
