"""What is loaded is what was verified, whatever happens to the files meanwhile."""

import json
import os
from pathlib import Path

import pytest

from model_store.errors import CorruptStoreError
from model_store.operations.sealed import sealed
from model_store.store import Store
from tests.model_store.aging import age
from tests.model_store.test_store_damage import blob_of, flip


@pytest.fixture
def published(store: Store, model_dir: Path) -> Store:
    store.publish("g2p", model_dir)
    return store


def test_it_has_the_files_of_the_version(published: Store, model_dir: Path) -> None:
    view, files = published.checkout("g2p"), published.resolve("g2p").manifest.files
    with sealed(view, files) as folder:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in model_dir.iterdir()
        }
    assert not folder.exists()


def test_a_file_that_is_exchanged_meanwhile_is_not_seen(published: Store) -> None:
    view, files = published.checkout("g2p"), published.resolve("g2p").manifest.files
    with sealed(view, files) as folder:
        (view / "config.json").unlink()
        (view / "config.json").write_text("{}")
        assert json.loads((folder / "config.json").read_text())["model_type"] == "t5"


def test_a_file_that_is_written_to_meanwhile_is_found_out(published: Store) -> None:
    view, files = published.checkout("g2p"), published.resolve("g2p").manifest.files
    with pytest.raises(CorruptStoreError, match=r"model\.safetensors has sha256"), sealed(view, files):
        flip(blob_of(published, "g2p", "model.safetensors"))


def test_a_file_whose_times_were_set_back_is_read_again(published: Store) -> None:
    view, files = published.checkout("g2p"), published.resolve("g2p").manifest.files
    blob = blob_of(published, "g2p", "model.safetensors")
    before = blob.stat()

    def flip_secretly() -> None:
        flip(blob)
        os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(CorruptStoreError, match=r"model\.safetensors has sha256"), sealed(view, files):
        flip_secretly()


def test_a_new_link_to_a_file_is_no_damage(published: Store, model_dir: Path) -> None:
    view, files = published.checkout("g2p"), published.resolve("g2p").manifest.files
    age(published.root)  # so that a publish renews what it finds there
    with sealed(view, files):
        published.publish("other", model_dir)


@pytest.mark.parametrize("what", ["flipped", "missing", "link", "folder"])
def test_what_is_bad_before(what: str, published: Store, tmp_path: Path) -> None:
    view, files = published.checkout("g2p"), published.resolve("g2p").manifest.files
    path = view / "tokenizer.json"
    if what == "flipped":
        flip(path)
    else:
        path.rename(tmp_path / "elsewhere")
        if what == "link":
            path.symlink_to(tmp_path / "elsewhere")
        elif what == "folder":
            path.mkdir()
    with pytest.raises(CorruptStoreError, match=r"tokenizer\.json"), sealed(view, files):
        raise AssertionError("it must not be opened")
