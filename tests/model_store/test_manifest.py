import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_store.errors import CorruptStoreError, InvalidRequestError, UnknownSchemaError
from model_store.objects import keys
from model_store.objects.blobs import read_manifest
from model_store.storage.local import LocalStorage
from model_store.version.manifest import FileEntry, Lineage, Manifest, SpecSummary

GOLDEN = (
    b'{"files":[{"path":"config.json","sha256":"' + b"1" * 64 + b'","size":757},'
    b'{"path":"model.safetensors","sha256":"' + b"2" * 64 + b'","size":294208}],'
    b'"kind":"pruned","licence":"MIT",'
    b'"lineage":{"code_version":"0.1.0","data":{"train":"' + b"3" * 64 + b'"},'
    b'"parent":"' + b"4" * 64 + b'","recipe":{"name":"\\u0101b","rate":0.001,"steps":[1,2]},"seed":7},'
    b'"metrics":{"per":9.5,"wer":38.0},"schema_version":1,'
    b'"spec":{"bytes":142912,"d_model":32,"decoder_layers":1,"dense_decoder_layers":3,"dense_encoder_layers":4,'
    b'"dtype":"bfloat16","encoder_layers":4,"encoder_sparsity":0.3,"family":"t5","parameters":71456,'
    b'"vocab_size":30}}'
)
GOLDEN_DIGEST = "2b9e9e41621c332557cb09aecb5f69f9e4532c9b81753edbfad4ae3d6b919d79"


def example(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "kind": "pruned",
        "files": (
            FileEntry(path="config.json", sha256="1" * 64, size=757),
            FileEntry(path="model.safetensors", sha256="2" * 64, size=294208),
        ),
        "spec": SpecSummary(
            family="t5",
            vocab_size=30,
            d_model=32,
            encoder_layers=4,
            decoder_layers=1,
            dense_encoder_layers=4,
            dense_decoder_layers=3,
            encoder_sparsity=0.3,
            parameters=71456,
            bytes=142912,
            dtype="bfloat16",
        ),
        "lineage": Lineage(
            parent="4" * 64,
            data={"train": "3" * 64},
            recipe={"steps": [1, 2], "name": "āb", "rate": 1e-3},
            seed=7,
            code_version="0.1.0",
        ),
        "metrics": {"wer": 38, "per": 9.5},
        "licence": "MIT",
    }
    return Manifest.create(**(fields | changes))


def test_golden_bytes() -> None:
    manifest = example()
    assert manifest.canonical_bytes() == GOLDEN
    assert manifest.digest == GOLDEN_DIGEST
    assert Manifest.parse(GOLDEN) == manifest


def test_order_of_keys_and_kind_of_number_do_not_matter() -> None:
    assert example(metrics={"per": 9.5, "wer": 38.0}).digest == example().digest
    assert example(metrics={"x": -0.0}).digest == example(metrics={"x": 0.0}).digest
    assert example(metrics={}).digest != example().digest


def test_what_is_not_known_stays_out() -> None:
    assert b"lineage" not in example(lineage=Lineage()).canonical_bytes()
    assert b"null" in example(lineage=Lineage(recipe={"limit": None})).canonical_bytes()


@settings(max_examples=40)
@given(
    metrics=st.dictionaries(st.text(st.characters(codec="utf-8")), st.floats(allow_nan=False, allow_infinity=False)),
    recipe=st.dictionaries(
        st.text(st.characters(codec="utf-8")),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters(codec="utf-8")),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
            max_leaves=8,
        ),
    ),
)
def test_round_trip(metrics: dict[str, float], recipe: dict[str, Any]) -> None:
    manifest = example(metrics=metrics, lineage=Lineage(recipe=recipe))
    data = manifest.canonical_bytes()
    assert data.isascii()
    assert Manifest.parse(data) == manifest
    assert Manifest.parse(data).canonical_bytes() == data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"per": float("inf")}}, r"metrics\.per"),
        ({"metrics": {"per": "low"}}, r"metrics\.per"),
        ({"kind": "sparse"}, "kind"),
        ({"files": (FileEntry(path="config.json", sha256="1" * 64, size=1),) * 2}, "files: .* ascending"),
        ({"files": ()}, r"files: there is no config\.json"),
        ({"licence": "half a character: \udcff"}, "cannot be published"),
        ({"lineage": Lineage(recipe={"x": [float("nan")]})}, "cannot be published"),
        ({"lineage": Lineage(recipe={"x": object()})}, "cannot be published"),
        ({"lineage": Lineage(parent="no digest")}, "parent"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_cannot_be_published(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        example(**changes)


def edited(**changes: object) -> bytes:
    fields = json.loads(GOLDEN) | changes
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\x80\x04K\x01.",
        b"[" * 100_000,
        GOLDEN[:-1],
        edited(colour="red"),
        edited(kind=None),
        edited(metrics={"per": "low"}),
        edited(schema_version=0),
        edited(schema_version="1"),
        *(
            edited(files=[{"path": path, "sha256": "1" * 64, "size": 1}])
            for path in ("../config.json", "/etc/passwd", "a/b", "", ".", "..", "a\n", "a" * 129, "a\\b")
        ),
        edited(files=[{"path": "config.json", "sha256": "1" * 63, "size": 1}]),
        edited(files=[{"path": "config.json", "sha256": "1" * 64, "size": -1}]),
        edited(files=[{"path": "config.json", "sha256": "1" * 64, "size": 1}] * 2),
        edited(files=[{"path": "model.safetensors", "sha256": "1" * 64, "size": 1}]),
        edited(files=[]),
    ],
)
def test_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises(CorruptStoreError):
        Manifest.parse(data)


@pytest.mark.parametrize("data", [GOLDEN + b"\n", GOLDEN.replace(b'"MIT"', b'"MIT" '), GOLDEN.replace(b"38.0", b"38")])
def test_only_one_form_is_stored(data: bytes, tmp_path: Path) -> None:
    storage, digest = LocalStorage(tmp_path), hashlib.sha256(data).hexdigest()
    storage.create(keys.blob(digest), data)
    with pytest.raises(CorruptStoreError, match="not in canonical form"):
        read_manifest(storage, digest)


def test_newer_schema_is_not_called_damage() -> None:
    with pytest.raises(UnknownSchemaError, match=r"schema 2, this program reads 1"):
        Manifest.parse(edited(schema_version=2, colour="red"))
