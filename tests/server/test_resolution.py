import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from model_store.errors import InvalidRequestError, NotFoundError, UnsupportedModelError
from model_store.model.config import spec_of
from model_store.store import Store
from server.engine.capabilities import engine_name, speed_order
from server.engine.interface.config import EngineConfig
from server.engine.machine import cpus
from server.errors import SettingsError
from server.frontend.resolution import ResolvedVariant, resolve_models
from server.settings import ModelRequest
from tests.quality_records import record
from tests.tiny_families import CASES, build_tiny
from tests.tiny_models import build_tiny_t5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    store = Store(root / "store")
    store.publish("tiny", build_tiny_t5(root / "My Model"), alias="dense")
    return root


def resolve(folder: Path, *refs: str) -> list[ResolvedVariant]:
    requests = tuple(ModelRequest(ref=ref, engine=EngineConfig()) for ref in refs)
    return list(resolve_models(requests, Store(folder / "store")))


def test_a_variant_is_called_by_its_alias_else_by_its_version(folder: Path) -> None:
    by_alias, by_version = resolve(folder, "tiny@dense", "tiny:1")
    assert (by_alias.ref, by_alias.model, by_alias.variant) == ("tiny@dense", "tiny", "dense")
    assert (by_version.ref, by_version.variant) == ("tiny:1", "v1")
    assert by_alias.digest == by_version.digest
    assert by_alias.version == 1
    (bare,) = resolve(folder, "tiny")
    assert (bare.ref, bare.variant) == ("tiny:1", "v1")
    assert (bare.found.model.folder / "model.safetensors").is_file()


def test_a_path_gives_a_legal_name_and_its_kind(folder: Path) -> None:
    (model,) = resolve(folder, str(folder / "My Model"))
    assert (model.ref, model.model, model.variant) == ("my-model@dense", "my-model", "dense")
    assert (model.version, model.digest) == (None, None)


def test_a_compact_model_is_called_pruned(folder: Path, tmp_path: Path) -> None:
    directory = tmp_path / "small"
    shutil.copytree(folder / "My Model", directory)
    config = json.loads((directory / "config.json").read_text())
    dense = spec_of(config)
    compact = dataclasses.replace(dense, decoder=dense.decoder[:1])
    config |= {"model_type": "nash_t5", "num_decoder_layers": 1, **compact.layer_config()}
    (directory / "config.json").write_text(json.dumps(config))
    (model,) = resolve(folder, str(directory))
    assert (model.ref, model.found.model.spec.compact) == ("small@pruned", True)


def test_a_model_with_so_many_positions_is_asked_for_no_more(folder: Path, tmp_path: Path) -> None:
    for name, limits in {"bart": (75, 75), "m2m_100": (512, 256)}.items():
        directory = build_tiny(CASES[name], tmp_path / name)
        with pytest.raises(InvalidRequestError, match=r"has no tokenizer\.json"):
            resolve(folder, str(directory))
        (directory / "tokenizer.json").touch()
        (model,) = resolve(folder, str(directory))
        assert (model.request.engine.max_source_tokens, model.request.engine.max_new_tokens) == limits
        assert model.found.model.spec.family == name


def test_the_dtype_is_settled_by_the_versions_records_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "store")
    for seed, alias in enumerate(("dense", "other")):
        store.publish("tiny", build_tiny_t5(tmp_path / alias, seed=seed), alias=alias)
    fastest = speed_order(EngineConfig())[0]
    for dtype in {fastest, "float32"}:
        store.add_quality("tiny@dense", record(dtype, 50.0))
    requests = [ModelRequest.parse(text) for text in ("tiny@dense", "tiny@other", "tiny:1,dtype=float64", "./other")]
    requests[-1] = replace(requests[-1], ref=str(tmp_path / "other"))
    with caplog.at_level("INFO", logger="server.frontend.resolution"):
        models = resolve_models(tuple(requests), store)
    assert [model.request.engine.dtype for model in models] == [fastest, "float32", "float64", "float32"]
    assert models[2].dtype_why == "asked for"
    assert [model.engine for model in models] == [engine_name(model.request.engine) for model in models]
    first = models[0]
    assert caplog.messages[0] == f"tiny@dense runs in {fastest} on {first.engine} ({first.dtype_why})"
    assert len(caplog.messages) == len(models)
    if fastest != "float32":
        assert first.dtype_why.startswith("its quality holds: exact match 50.00 % beside 50.00 %")


def test_what_the_machine_has_not_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "instruction_sets", lambda: ("avx2", "fma"))
    request = ModelRequest.parse("tiny@dense,backend=torch,dtype=bfloat16")
    with pytest.raises(SettingsError, match=r"^model 'tiny@dense': dtype 'bfloat16' is not possible .* avx2, fma; use"):
        resolve_models((request,), Store(folder / "store"))


def test_two_of_one_name_are_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match="tiny and tiny:1 are both tiny:1: give one"):
        resolve(folder, "tiny:1", "tiny")


def test_what_is_not_there_or_no_model_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="other"):
        resolve(folder, "other@dense")
    with pytest.raises(InvalidRequestError, match="is not a folder"):
        resolve(folder, "./nothing")
    with pytest.raises(InvalidRequestError, match=r"config\.json"):
        resolve(folder, str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UnsupportedModelError, match="gpt2"):
        resolve(folder, str(tmp_path))
    for damaged in ("[", "[" * 100_000):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(InvalidRequestError, match="is not JSON"):
            resolve(folder, str(tmp_path))


def test_a_digest_pins_a_version_and_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = store.publish("tiny", build_tiny_t5(tmp_path / "a", seed=0), alias="dense")
    store.publish("tiny", build_tiny_t5(tmp_path / "b", seed=1), alias="dense")
    pinned = f"tiny@sha256:{first.digest}"
    (model,) = resolve_models((ModelRequest.parse(pinned),), store)
    assert (model.ref, model.variant, model.digest) == ("tiny:1", "v1", first.digest)
    assert store.tag(pinned, "stable").version == 1
    with pytest.raises(NotFoundError, match=f"has no version with the digest {'0' * 64}"):
        store.resolve(f"tiny@sha256:{'0' * 64}")
    store.untag("tiny", "stable")
    store.untag("tiny", "default")
    assert store.remove(pinned).version == 1
    with pytest.raises(NotFoundError, match="has no version with the digest"):
        store.resolve(pinned)
