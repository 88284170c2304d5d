"""The store under kill -9, under races and under a full disk, in real processes."""

import itertools
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model_store.store import Store
from tests.model_store.aging import age
from tests.model_store.second_reader import check_second_reading
from tests.model_store.store_driver import ROOT, drive


@dataclass(frozen=True)
class Killed:
    """One operation that is killed at every point: what it starts from, and what holds when it was done again."""

    job: dict[str, Any]
    versions: tuple[int, ...]  # live when the operation was done
    before: tuple[int, ...]  # live before it
    aliases: dict[str, int | None]  # after it


PUBLISHED: dict[str, int | None] = {"default": 1, "live": 2, "dense": 1}
OPERATIONS: dict[str, Killed] = {
    "publish": Killed(
        {"op": "publish", "alias": "live", "metrics": {"n": 9.0}}, (1, 2, 3, 5), (1, 2, 3), PUBLISHED | {"live": 5}
    ),
    "tag": Killed({"op": "tag", "ref": "g2p:3", "alias": "live"}, (1, 2, 3), (1, 2, 3), PUBLISHED | {"live": 3}),
    "untag": Killed({"op": "untag", "alias": "live"}, (1, 2, 3), (1, 2, 3), PUBLISHED | {"live": None}),
    "rollback": Killed({"op": "rollback", "alias": "live"}, (1, 2, 3), (1, 2, 3), PUBLISHED | {"live": 1}),
    "rm": Killed({"op": "rm", "ref": "g2p:3"}, (1, 2), (1, 2, 3), PUBLISHED),
    "gc": Killed({"op": "gc"}, (1, 2, 3), (1, 2, 3), PUBLISHED),
    "push": Killed({"op": "copy", "ref": "g2p:2", "alias": "live"}, (1, 2, 3), (1, 2, 3), PUBLISHED),
}


def filled(root: Path, model: Path) -> Path:
    """A store of three versions, with garbage of every kind that a collection takes."""
    store = Store(root)
    for number, alias in ((1.0, "dense"), (2.0, "live"), (3.0, None), (4.0, None)):
        store.publish("g2p", model, alias=alias, metrics={"n": number})
    store.tag("g2p:1", "live")
    store.tag("g2p:2", "live")
    store.remove("g2p:4")
    (root / "tmp" / "dead").mkdir()
    (root / "tmp" / "dead" / "half").write_bytes(b"x" * 100)
    for number in range(3):
        blob = root / "blobs/sha256/00" / f"00{number}{'0' * 61}"
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(b"garbage")
    age(root)
    return root


@pytest.fixture(scope="module")
def template(built_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("template") / "store", built_t5)


def check_whole(store: Store, versions: tuple[int, ...]) -> None:
    """Everything that can be read is whole and can be loaded."""
    found = store.list()
    assert tuple(version.version for version in found) == versions
    assert store.verify() == []
    for version in found:
        assert (store.checkout(version.ref) / "model.safetensors").is_file()
    check_second_reading(store)


@pytest.mark.parametrize(
    "operation",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("gc", "push") else name for name in OPERATIONS],
)
def test_kill_at_every_point(operation: str, template: Path, built_t5: Path, tmp_path: Path) -> None:
    """Whatever the moment, nothing torn is seen, nothing is lost, and the same command then succeeds."""
    wanted = OPERATIONS[operation]
    job = wanted.job | {"directory": str(built_t5)}

    def copy(name: str) -> dict[str, Any]:
        shutil.copytree(template, tmp_path / name)
        target = {"target": str(tmp_path / f"{name}-target")} if operation == "push" else {}
        return job | {"store": str(tmp_path / name)} | target

    [counted] = drive([copy("counted") | {"count": True}])
    points = counted["points"]
    assert points >= 6, counted
    jobs = [copy(str(point)) | {"kill_at": point} for point in range(points)]
    assert drive(jobs, at_once=8) == ["killed"] * points

    for killed in jobs:
        store = Store(killed["store"])
        live = tuple(version.version for version in store.list())
        assert live in (wanted.before, wanted.versions)
        check_whole(store, live)
        if operation == "push":
            check_whole(Store(killed["target"]), () if not Store(killed["target"]).list() else (1,))
        if operation == "gc":
            age(Path(killed["store"]))  # a folder that was half deleted is young again
    # Where an operation was done before it was killed, doing it again may be refused, in words.
    again = drive([{key: value for key, value in each.items() if key != "kill_at"} for each in jobs], at_once=8)
    for killed, result in zip(jobs, again, strict=True):
        done_before = isinstance(result, dict)
        assert not done_before or operation in ("untag", "rollback", "rm"), result
        store = Store(killed["store"])
        check_whole(store, wanted.versions)
        for alias, version in wanted.aliases.items():
            moves = store.history("g2p", alias)[alias]
            twice_back = operation == "rollback" and len(moves) > 4  # it had been done before the process was killed
            assert moves[-1].version == (2 if twice_back else version), (killed["kill_at"], alias)
        if operation == "push":
            check_whole(Store(killed["target"]), (1,))
            assert Store(killed["target"]).resolve("g2p@live").digest == store.resolve("g2p:2").digest
        if operation == "gc":
            assert not (Path(killed["store"]) / "tmp" / "dead").exists()
            assert not list((Path(killed["store"]) / "blobs/sha256/00").glob("*" + "0" * 61))
        shutil.rmtree(killed["store"])


@pytest.mark.slow
def test_fifty_kills_at_random_moments(built_t5: Path, tmp_path: Path) -> None:
    root, chance = tmp_path / "store", random.Random(3)
    store = Store(root)
    store.publish("g2p", built_t5, alias="dense")
    script = (
        "import sys\nfrom pathlib import Path\nfrom model_store.store import Store\n"
        "store, n = Store(sys.argv[1]), int(sys.argv[3])\nprint('ready', flush=True)\n"
        "while True:\n"
        "    done = store.publish('g2p', Path(sys.argv[2]), alias='live', metrics={'n': float(n)})\n"
        "    store.tag('g2p:1', 'live')\n"
        "    store.remove(f'g2p:{done.version}')\n"
        "    store.collect()\n"
        "    n += 1\n"
    )
    for kill in range(50):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(root), str(built_t5), str(kill * 1000)],
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert store.verify() == []
        assert store.resolve("g2p").version == 1
        if kill % 10 == 9:
            age(root)  # a day goes by, and what the killed ones left may be taken
            store.collect()
            assert list((root / "tmp").iterdir()) == []
    assert store.publish("g2p", built_t5, metrics={"n": -1.0}).created


def test_eight_publishers_of_eight_contents(store: Store, built_t5: Path) -> None:
    job = {"op": "publish", "store": store.url, "directory": str(built_t5), "alias": "last"}
    results = drive([{**job, "metrics": {"n": float(n)}} for n in range(8)])
    assert sorted(version for version, _, _ in results) == list(range(1, 9))
    assert all(created for _, _, created in results)
    assert len({digest for _, digest, _ in results}) == 8
    for version, digest, _ in results:
        assert store.resolve(f"g2p:{version}").digest == digest
    assert store.verify() == []
    assert store.resolve("g2p@last").version in range(1, 9)
    assert store.resolve("g2p@default").version == 1
    assert list((store.root / "tmp").iterdir()) == []


def test_eight_publishers_of_one_content(store: Store, built_t5: Path) -> None:
    job = {"op": "publish", "store": store.url, "directory": str(built_t5), "alias": "last"}
    results = drive([job] * 8)
    assert {version for version, _, _ in results} == {1}
    assert [created for _, _, created in results].count(True) == 1
    assert [version.aliases for version in store.list()] == [("default", "last")]
    assert len(list((store.root / "models/g2p/aliases/last").iterdir())) == 1
    assert store.verify() == []


@pytest.mark.slow
def test_eight_publishers_of_fifty_versions_each(store: Store, built_t5: Path) -> None:
    job = {"op": "publish many", "store": store.url, "directory": str(built_t5), "times": 50, "alias": "last"}
    results = drive([{**job, "writer": float(writer)} for writer in range(8)], timeout_s=900)
    numbers = sorted(number for numbers in results for number in numbers)
    assert numbers == list(range(1, 401))
    assert len({version.digest for version in store.list()}) == 400
    moves = store.history("g2p", "last")["last"]
    assert [move.generation for move in moves] == list(range(1, len(moves) + 1))
    assert {move.version for move in moves} == set(range(1, 401))  # every publisher's move is in the history
    assert store.verify() == []


def test_an_alias_race_has_one_winner_and_a_whole_history(store: Store, built_t5: Path) -> None:
    for number in range(8):
        store.publish("g2p", built_t5, metrics={"n": float(number)})
    job = {"op": "tag many", "store": store.url, "alias": "live"}
    drive([{**job, "refs": [f"g2p:{1 + (writer + turn) % 8}" for turn in range(10)]} for writer in range(8)])
    moves = store.history("g2p", "live")["live"]
    assert [move.generation for move in moves] == list(range(1, len(moves) + 1))
    assert all(one.version != other.version for one, other in itertools.pairwise(moves))
    assert store.resolve("g2p@live").version == moves[-1].version


def test_tagging_what_is_being_removed_never_leaves_an_alias_of_nothing(store: Store, built_t5: Path) -> None:
    store.publish("g2p", built_t5)
    for number in range(2, 10):
        store.publish("g2p", built_t5, metrics={"n": float(number)})
        tag, rm = drive(
            [
                {"op": "tag", "store": store.url, "ref": f"g2p:{number}", "alias": "live"},
                {"op": "rm", "store": store.url, "ref": f"g2p:{number}"},
            ]
        )
        assert isinstance(tag, dict) or isinstance(rm, dict), "both were told that they had succeeded"
        assert store.verify() == []


def test_publishing_during_a_collection(store: Store, built_t5: Path, tmp_path: Path) -> None:
    """The same contents come and go, old as can be, while a collection runs all the time."""
    stop = tmp_path / "stop"
    store.publish("g2p", built_t5, alias="dense")
    process = subprocess.Popen(
        [sys.executable, "-c", _COLLECTING, store.url, str(stop)],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    try:
        for round_ in range(25):
            done = store.publish("g2p", built_t5, metrics={"n": float(round_ % 3)})
            assert (store.checkout(f"g2p:{done.version}") / "model.safetensors").is_file()
            store.remove(f"g2p:{done.version}")
            age(store.root / "blobs")
            age(store.root / "views")
    finally:
        stop.touch()
        assert process.wait(timeout=60) == 0
    assert store.verify() == []


_COLLECTING = (
    "import sys\nfrom pathlib import Path\nfrom model_store.store import Store\n"
    "while not Path(sys.argv[2]).exists(): Store(sys.argv[1]).collect()\n"
)


def test_eight_readers_check_out_at_once(store: Store, built_t5: Path) -> None:
    store.publish("g2p", built_t5)
    views = set(drive([{"op": "checkout", "store": store.url, "ref": "g2p"}] * 8))
    assert len(views) == 1
    view = Path(views.pop())
    assert {path.name: path.read_bytes() for path in view.iterdir()} == {
        path.name: path.read_bytes() for path in built_t5.iterdir()
    }


def test_disk_that_fills_up_while_copying(store: Store, built_t5: Path) -> None:
    job = {"op": "publish", "store": store.url, "directory": str(built_t5), "file_limit_bytes": 100_000}
    [result] = drive([job])
    assert result["error"] == "StoreAccessError"
    assert store.list() == []
    assert [path for path in store.root.rglob("*") if path.is_file()] == []
