"""The native operator runs every family as PyTorch does in float64, dense and compact."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from server.engine.interface.config import EngineConfig
from server.engine.native.backend import NativeBackend
from tests.engine import compact, compact_bart
from tests.engine.compact_bart import hollow, ragged
from tests.engine.family_reference import STEPS, backend_logits, load_backend, targets, texts
from tests.tiny_families import CASES, build_tiny

pytestmark = pytest.mark.usefixtures("instruction_set")

# Of the largest logit. Coarse dtypes differ by their own rounding, whose sum over layers these bound.
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.06, "int8": 0.15}
CUT = {
    **dict.fromkeys(("mt5", "umt5"), compact.write_compact),
    **dict.fromkeys(("bart", "mbart", "marian, two vocabularies", "pegasus", "m2m_100"), compact_bart.write_compact),
}
MODELS: dict[str, tuple[str, Callable[[ModelSpec], ModelSpec] | None]] = {
    **{name: (name, None) for name in CASES},
    **{f"{name}, {cut.__name__}": (name, cut) for name in CUT for cut in (ragged, hollow)},
}


@dataclass(frozen=True)
class Case:
    """A model, what it reads, and its exact logits, which all sets share."""

    directory: Path
    sources: list[list[int]]
    targets: list[list[int]]
    exact: Tensor


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, cut = MODELS[request.param]
    directory = build_tiny(CASES[name], tmp_path_factory.mktemp("family") / "model")
    if cut is not None:
        directory = CUT[name](directory, cut(Model.open(directory).spec), directory.parent / "compact")
    spec = Model.open(directory).spec
    sources, wanted = texts(spec, [5, 60, 1, 33]), targets(spec, 4)
    exact = backend_logits(load_backend(directory, "float64", slots=4), sources, wanted)
    return Case(directory, sources, wanted, exact)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_it_computes_what_pytorch_does(case: Case, dtype: str) -> None:
    config = EngineConfig(dtype=dtype, slots=4, max_source_tokens=70, max_new_tokens=STEPS)
    backend = NativeBackend.load(Model.open(case.directory), config)
    ours = backend_logits(backend, case.sources, case.targets)
    largest = max(1.0, case.exact.abs().max().item())
    assert (ours - case.exact).abs().max().item() <= TOLERANCES[dtype] * largest
