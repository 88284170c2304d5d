"""A store that another user published and this one can only read, as a container does that mounts it read-only."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model_store.store import Store
from tests.model_store.store_driver import drive

OTHER_UID = 10001


@pytest.fixture
def published(model_dir: Path) -> Iterator[Store]:
    """Outside pytest's folders, into which only their owner can look; the originals too are the owner's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for path in model_dir.iterdir():
        path.chmod(0o600)
    umask = os.umask(0o022)
    try:
        store = Store(folder / "store")
        store.publish("g2p", model_dir, alias="dense")
        yield store
    finally:
        os.umask(umask)
        _change_modes(folder, lambda mode: mode | 0o200)
        shutil.rmtree(folder)


def _change_modes(folder: Path, change: Callable[[int], int]) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(change(path.stat().st_mode & 0o777))


def _checkout_by_a_reader(store: Store) -> Any:
    """By another user where this one is root, whom modes do not stop; else by this one, without the right to write."""
    _change_modes(store.root, lambda mode: mode & ~0o222)
    job = {"store": str(store.root), "op": "checkout", "ref": "g2p@dense"}
    [result] = drive([job | {"uid": OTHER_UID} if os.geteuid() == 0 else job])
    return result


def test_what_was_published_can_be_loaded_by_another_user(published: Store, built_t5: Path) -> None:
    view = Path(_checkout_by_a_reader(published))
    assert view.parent == published.root / "views"
    assert {path.name: path.read_bytes() for path in view.iterdir()} == {
        path.name: path.read_bytes() for path in built_t5.iterdir()
    }


def test_what_was_never_opened_is_named_with_the_remedy(published: Store) -> None:
    shutil.rmtree(published.checkout("g2p@dense"))
    refused = _checkout_by_a_reader(published)
    assert refused["error"] == "StoreAccessError"
    assert refused["text"].startswith("g2p:1: ")
    assert "publish the model again, or load it once, as a user who can" in refused["text"]


def test_publishing_again_opens_what_was_not_opened(published: Store, model_dir: Path) -> None:
    shutil.rmtree(published.checkout("g2p@dense"))
    assert not published.publish("g2p", model_dir, alias="dense").created
    assert Path(_checkout_by_a_reader(published)).is_dir()
