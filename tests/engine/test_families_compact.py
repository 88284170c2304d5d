"""Compact models of BART's layout against dense ones whose cut parts are zeroed: each width its own, parts absent."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_store.errors import UnsupportedModelError
from model_store.model.config import layout_of
from model_store.model.model import Model
from model_store.model.spec import ModelSpec, dense_of
from server.engine.engine import Engine
from server.engine.errors import LoadError
from server.engine.interface.config import EngineConfig
from tests.engine.compact_bart import hollow, ragged, shortened, write_compact, write_zeroed
from tests.engine.family_reference import (
    TOLERANCES,
    backend_logits,
    check,
    expected_logits,
    load_backend,
    load_reference,
    targets,
    texts,
)
from tests.tiny_families import CASES, Case, build_tiny

NAMES = ["bart", "mbart", "marian, two vocabularies", "pegasus", "m2m_100"]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def dense_dir(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense model; read only."""
    return build_tiny(case, tmp_path_factory.mktemp("dense") / "model")


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("cut", [ragged, shortened, hollow])
def test_logits_are_those_of_the_dense_model_with_zeroed_parts(
    case: Case, dense_dir: Path, cut: Callable[[ModelSpec], ModelSpec], dtype: str, tmp_path: Path
) -> None:
    dense = Model.open(dense_dir).spec
    spec = cut(dense)
    compact_dir = write_compact(dense_dir, spec, tmp_path / "compact")
    assert Model.open(compact_dir).spec == spec
    assert dense_of(spec) == dense
    held = load_file(compact_dir / "model.safetensors")
    assert {n: tuple(t.shape) for n, t in held.items() if "layers" in n} == {
        n: shape for n, shape in layout_of(spec).shapes() if "layers" in n
    }
    reference = load_reference(case, write_zeroed(dense_dir, spec, tmp_path / "zeroed"), dtype)
    sources, wanted = texts(dense, [11, 40, 2]), targets(dense, 3)
    ours = backend_logits(load_backend(compact_dir, dtype, slots=3), sources, wanted)
    for source, target, logits in zip(sources, wanted, ours, strict=True):
        check(logits, expected_logits(reference, source, target), TOLERANCES[dtype])


def test_a_compact_model_is_smaller_in_memory(dense_dir: Path, tmp_path: Path) -> None:
    compact_dir = write_compact(dense_dir, ragged(Model.open(dense_dir).spec), tmp_path / "compact")
    dense, compact = (load_backend(d, "float32", slots=2).memory_bytes() for d in (dense_dir, compact_dir))
    assert compact["weights"] < dense["weights"]
    # 2 of 6 self-attention heads with room for 32 positions, 3 of 6 cross-attention heads with room for 72.
    assert compact["cache"] * (6 * 32 + 6 * 72) == dense["cache"] * (2 * 32 + 3 * 72)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("model.encoder.layers.1.fc1.bias", None), "has no tensor 'model.encoder.layers.1.fc1.bias'"),
        (("model.decoder.layers.0.encoder_attn.k_proj.bias", 7), r"k_proj.bias' has shape \[7\], .* \[24\]"),
        (("model.decoder.layers.2.fc1.bias", 28), "has the tensor 'model.decoder.layers.2.fc1.bias', which"),
        (("lm_head.bias", 37), "has the tensor 'lm_head.bias'"),
        (("final_logits_bias", 5), "final_logits_bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    dense_dir: Path, change: tuple[str, int | None], message: str, tmp_path: Path
) -> None:
    tensors = load_file(dense_dir / "model.safetensors")
    name, size = change
    if size is None:
        del tensors[name]
    else:
        tensors[name] = torch.zeros(size)
    (tmp_path / "config.json").write_bytes((dense_dir / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match=message):
        Engine.load(Model.open(tmp_path), EngineConfig(slots=1))


def test_a_config_that_the_engine_cannot_run_is_refused_by_key_and_value(dense_dir: Path, tmp_path: Path) -> None:
    config = json.loads((dense_dir / "config.json").read_text()) | {"activation_function": "gelu_fast"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="activation_function is 'gelu_fast': it must be relu or gelu"):
        Engine.load(Model.open(tmp_path), EngineConfig(slots=1))
