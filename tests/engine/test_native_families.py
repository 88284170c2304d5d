"""The native operator runs every family as PyTorch does in float64, dense and compact."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_store.spec import ModelSpec
from server.engine.capabilities import why_not_native
from server.engine.native import library as native
from server.engine.native.backend import NativeBackend
from server.engine.sequence import EngineConfig
from tests.engine.compact_bart import hollow, ragged, write_compact
from tests.engine.family_reference import STEPS, backend_logits, load_backend, spec_of, targets, texts
from tests.tiny_families import CASES, build_tiny

pytestmark = pytest.mark.skipif(native.library() is None, reason=str(why_not_native(EngineConfig())))

# Of the largest logit. Coarse dtypes differ by their own rounding, whose sum over layers these bound.
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.06, "int8": 0.15}
CUT = ["bart", "mbart", "marian, two vocabularies", "pegasus", "m2m_100"]


@torch.inference_mode()
def check_as_exact(directory: Path) -> None:
    spec = spec_of(directory)
    sources, wanted = texts(spec, [5, 60, 1, 33]), targets(spec, 4)
    exact = backend_logits(load_backend(directory, "float64", slots=4), sources, wanted)
    for dtype, tolerance in TOLERANCES.items():
        config = EngineConfig(dtype=dtype, slots=4, max_source_tokens=70, max_new_tokens=STEPS)
        ours = backend_logits(NativeBackend.load(directory, spec, config), sources, wanted)
        assert (ours - exact).abs().max().item() <= tolerance * max(1.0, exact.abs().max().item()), dtype


@pytest.mark.parametrize("name", CASES)
def test_dense(name: str, tmp_path: Path) -> None:
    check_as_exact(build_tiny(CASES[name], tmp_path / "model"))


@pytest.mark.parametrize("cut", [ragged, hollow])
@pytest.mark.parametrize("name", CUT)
def test_compact(name: str, cut: Callable[[ModelSpec], ModelSpec], tmp_path: Path) -> None:
    dense_dir = build_tiny(CASES[name], tmp_path / "dense")
    check_as_exact(write_compact(dense_dir, cut(spec_of(dense_dir)), tmp_path / "compact"))
