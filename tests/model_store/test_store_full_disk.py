"""A disk that is full: what was there stays whole, and the same command succeeds once there is room."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_store.errors import StoreAccessError
from model_store.store import Store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"a small disk can be made by root alone: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def resize(folder: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", folder], check=True)


def test_publishing_onto_a_disk_that_fills_up(
    small_disk: Path, built_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may take the room that there was when the publish looked, so it can run out anywhere."""
    store = Store(small_disk / "store")
    store.publish("g2p", built_t5, alias="dense")
    used = (1024 * 1024 - shutil.disk_usage(small_disk).free) // 1024
    model = Path(shutil.copytree(built_t5, tmp_path / "other"))
    (model / "notes.txt").write_text("x" * 50_000)
    monkeypatch.setattr("model_store.operations.publish.free_bytes", lambda folder: 1 << 60)
    for spare in (0, 4, 60, 200, 300, 330):
        resize(small_disk, used + spare)
        with pytest.raises(StoreAccessError, match="No space left on device: check the path"):
            store.publish("g2p", model, alias="dense")
        assert store.verify() == []
        assert [version.version for version in store.list()] == [1]
        assert store.checkout("g2p@dense").is_dir()
        assert not list((small_disk / "store" / "tmp").iterdir())
    resize(small_disk, used + 1024)
    assert store.publish("g2p", model, alias="dense").version == 2
    assert store.verify() == []


def test_a_collection_on_a_full_disk(small_disk: Path, built_t5: Path) -> None:
    """Freeing space must not need any."""
    store = Store(small_disk / "store")
    store.publish("g2p", built_t5, alias="dense")
    store.publish("g2p", built_t5, metrics={"n": 2.0})
    store.remove("g2p:2")
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(b"x" * free)
    assert shutil.disk_usage(small_disk).free == 0
    assert any(each.kind == "blob" and each.deleted for each in store.collect(grace_seconds=-1))
    assert store.verify() == []
