"""Stores that exist must stay readable, and digests what they are: every byte of a store, but for points in time."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.golden import masks
from tests.golden.expected_files import Golden
from tests.golden.literal_model import write_literal_model
from tests.golden.nash_process import nash


@dataclass(frozen=True, kw_only=True)
class Made:
    """A store with a dense version and one that names it as its parent, and the digests that were told."""

    store: Path
    digests: Mapping[str, str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("manifests")
    dense, child = write_literal_model(folder / "dense"), write_literal_model(folder / "child", shift=1)
    publish = ("models", "publish", "words")
    options = ("--alias", "small", "--kind", "pruned", "--parent", "words@dense", "--licence", "Apache-2.0")
    told = [
        nash(*arguments, "--json", folder=folder).document()
        for arguments in ((*publish, dense, "--alias", "dense"), (*publish, child, *options))
    ]
    return Made(store=folder / "store", digests={f"{each['name']}:{each['version']}": each["digest"] for each in told})


def test_manifests_are_the_same_to_the_byte(made: Made, golden: Golden) -> None:
    found = {}
    for ref, digest in made.digests.items():
        manifest = (made.store / "blobs/sha256" / digest[:2] / digest).read_bytes()
        assert hashlib.sha256(manifest).hexdigest() == digest
        found[ref] = {"digest": digest, "bytes": manifest.decode("ascii")}
    golden.check("manifest/bytes", found, relative=0.0, absolute=0.0)


def test_the_files_of_a_store(made: Made, golden: Golden) -> None:
    """Where what lies, and what is in the pointers."""
    store = made.store
    paths = sorted(path.relative_to(store) for path in store.rglob("*") if path.is_file())
    pointers = [path for path in paths if path.parts[0] == "models"]
    aliases = {str(path): json.loads((store / path).read_text()) for path in pointers if "aliases" in path.parts}
    texts = {str(path): (store / path).read_text() for path in pointers if "aliases" not in path.parts}
    golden.check(
        "manifest/files",
        {"files": [str(path) for path in paths], "pointers": texts, "aliases": aliases},
        masks.moments("aliases.*.at"),
        masks.nonces("aliases.*.nonce"),
    )
