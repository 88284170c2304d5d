"""A reader of stores written from docs/store-format.md alone, with nothing but the standard library.

Only the comparison at its end knows the store of this project.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from model_store.store import Store

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(rb"([0-9a-f]{64})\n")


def read_store(root: Path) -> dict[str, Any]:
    """Every live version with its files' bytes checked, and what every alias names.

    Raises:
        ValueError: the store is not as the page says.
    """
    if (root / "store.json").exists():
        document = json.loads((root / "store.json").read_bytes())
        if document["format"] != "nash-model-store" or document["format_version"] > 1:
            raise ValueError("another format")
    found: dict[str, Any] = {"versions": {}, "aliases": {}}
    models = root / "models"
    for name in _names(models):
        named = set()
        aliases = models / name / "aliases"
        for alias in _names(aliases):
            moves = _numbers(aliases / alias)
            if moves and (version := json.loads(moves[max(moves)].read_bytes())["version"]) is not None:
                found["aliases"][f"{name}@{alias}"] = version
                named.add(version)
        removed = _numbers(models / name / "tombstones")
        for number, pointer in _numbers(models / name / "versions").items():
            if number not in removed or number in named:
                found["versions"][f"{name}:{number}"] = _version(root, pointer.read_bytes())
    return found


def check_second_reading(store: Store) -> None:
    """Both readers find the same versions, files and aliases."""
    second = read_store(store.root)
    first = store.list()
    assert second["versions"] == {
        version.ref: {
            "digest": version.digest,
            "files": {file.path: file.sha256 for file in version.manifest.files},
        }
        for version in first
    }
    assert second["aliases"] == {
        f"{version.name}@{alias}": version.version for version in first for alias in version.aliases
    }


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.is_dir() else []


def _numbers(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    named = {
        int(path.name): path for path in folder.iterdir() if re.fullmatch(r"[0-9]{6,}", path.name) and path.is_file()
    }
    return {number: named[number] for number in sorted(named) if number and named[number].name == f"{number:06d}"}


def _version(root: Path, pointer: bytes) -> dict[str, Any]:
    match = _DIGEST.fullmatch(pointer)
    if match is None:
        raise ValueError("a pointer without a digest")
    digest = match[1].decode()
    manifest = json.loads(data := _blob(root, digest))
    if json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode("ascii") != data:
        raise ValueError("a manifest that is not canonical")
    paths = [file["path"] for file in manifest["files"]]
    if manifest["schema_version"] != 1 or paths != sorted(set(paths)) or not all(map(_PATH.fullmatch, paths)):
        raise ValueError("a manifest that breaks a rule")
    for file in manifest["files"]:
        if len(_blob(root, file["sha256"])) != file["size"]:
            raise ValueError(f"{file['path']} has another size")
    return {"digest": digest, "files": {file["path"]: file["sha256"] for file in manifest["files"]}}


def _blob(root: Path, digest: str) -> bytes:
    path = root / "blobs" / "sha256" / digest[:2] / digest
    data = (path if path.exists() else root / "quarantine" / digest).read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{digest} is damaged")
    return data
