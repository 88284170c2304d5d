"""The store under kill -9, under a race and under a full disk, in real processes."""

from pathlib import Path

import pytest

from model_store.store import Store
from tests.model_store.publish_driver import drive

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
STEPS = (
    *(f"copy {name}" for name in FILES),
    *(f"link {name}" for name in FILES),
    "manifest",
    "version",
    "check",
    "view",
    "alias",
    "drop",
)
AFTER_COMMIT = ("check", "view", "alias", "drop")


def test_steps_are_those_that_are_killed_below(store: Store, model_dir: Path) -> None:
    heard: list[str] = []
    Store(store.root, on_step=heard.append).publish("g2p", model_dir, alias="dense")
    assert tuple(heard) == STEPS


@pytest.fixture(scope="module")
def killed_stores(built_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each step a store with one whole version, in which a second publish was killed just before the step."""
    base = tmp_path_factory.mktemp("killed")
    stores = {step: base / str(number) for number, step in enumerate(STEPS)}
    for root in stores.values():
        Store(root).publish("g2p", built_t5, alias="dense")
    jobs = [
        {
            "store": str(root),
            "directory": str(built_t5),
            "name": "g2p",
            "alias": "dense",
            "metrics": {"second": 1.0},
            "kill_at": step,
        }
        for step, root in stores.items()
    ]
    assert drive(jobs) == ["killed"] * len(STEPS)
    return stores


@pytest.mark.parametrize("step", STEPS)
def test_kill_at_every_step(step: str, killed_stores: dict[str, Path], built_t5: Path) -> None:
    store = Store(killed_stores[step])
    committed = step in AFTER_COMMIT
    assert [version.version for version in store.list()] == ([1, 2] if committed else [1])
    assert store.verify() == []
    assert store.resolve("g2p@dense").version == (2 if step == "drop" else 1)
    for version in store.list():
        assert (store.checkout(version.ref) / "model.safetensors").is_file()

    again = store.publish("g2p", built_t5, alias="dense", metrics={"second": 1.0})
    assert (again.version, again.created) == (2, not committed)
    assert [version.version for version in store.list()] == [1, 2]
    assert store.resolve("g2p@dense").version == 2
    assert store.verify() == []


def test_eight_publishers_of_eight_contents(store: Store, built_t5: Path) -> None:
    job = {"store": str(store.root), "directory": str(built_t5), "name": "g2p", "alias": "last"}
    results = drive([{**job, "metrics": {"n": float(n)}} for n in range(8)])
    assert sorted(version for version, _, _ in results) == list(range(1, 9))
    assert all(created for _, _, created in results)
    assert len({digest for _, digest, _ in results}) == 8
    for version, digest, _ in results:
        assert store.resolve(f"g2p:{version}").digest == digest
    assert store.verify() == []
    assert store.resolve("g2p@last").version in range(1, 9)
    assert list((store.root / "tmp").iterdir()) == []


def test_eight_publishers_of_one_content(store: Store, built_t5: Path) -> None:
    job = {"store": str(store.root), "directory": str(built_t5), "name": "g2p", "alias": "last"}
    results = drive([job] * 8)
    assert {version for version, _, _ in results} == {1}
    assert [created for _, _, created in results].count(True) == 1
    assert [version.aliases for version in store.list()] == [("last",)]
    assert len(list((store.root / "models/g2p/aliases/last").iterdir())) == 1
    assert store.verify() == []


def test_eight_readers_check_out_at_once(store: Store, built_t5: Path) -> None:
    store.publish("g2p", built_t5)
    job = {"store": str(store.root), "directory": str(built_t5), "checkout": "g2p"}
    views = set(drive([job] * 8))
    assert len(views) == 1
    view = Path(views.pop())
    assert {path.name: path.read_bytes() for path in view.iterdir()} == {
        path.name: path.read_bytes() for path in built_t5.iterdir()
    }


def test_disk_that_fills_up_while_copying(store: Store, built_t5: Path) -> None:
    job = {"store": str(store.root), "directory": str(built_t5), "name": "g2p", "file_limit_bytes": 100_000}
    [result] = drive([job])
    assert result["error"] == "StoreAccessError"
    assert store.list() == []
    assert [path for path in store.root.rglob("*") if path.is_file()] == []
