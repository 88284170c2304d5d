"""bitsandbytes' formats, on the CPU: near the product, near the logits, and refused where they cannot be."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.activations import ACT2FN

from model_store.model.model import Model
from server.engine.engine import Engine
from server.engine.errors import LoadError
from server.engine.interface.config import EngineConfig
from server.engine.pytorch.backend import TorchBackend
from server.engine.pytorch.matrices import bitsandbytes_matrix
from server.engine.pytorch.matrices.bitsandbytes_matrix import BYTES_PER_WEIGHT, check_bitsandbytes, quantize
from server.engine.pytorch.matrices.weight_bytes import weight_bytes
from tests.engine.family_reference import backend_logits, load_backend, targets, texts
from tests.tiny_families import CASES, build_tiny

ERRORS = {"bnb-int8": 0.02, "bnb-nf4": 0.13}  # of a product of normal numbers
CONFIG = EngineConfig(slots=4, max_source_tokens=70, max_new_tokens=21)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(CASES["bart"], tmp_path_factory.mktemp("bart") / "model")


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 64), (20, 48), (37, 23), (24, 16), (64, 128)])
def test_the_product_is_near(kind: str, dtype: torch.dtype, outputs: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(inputs)
    weight, x = torch.randn(outputs, inputs, generator=generator), torch.randn(9, inputs, generator=generator).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype)
    matrix = quantize(kind, weight, bias)
    exact = x.float() @ weight.t() + bias.float()
    result = matrix.apply(x)
    assert result.dtype == dtype
    assert (result.float() - exact).norm() < ERRORS[kind] * exact.norm()
    for activation in ("relu", "silu"):
        assert torch.allclose(matrix.activate(x, activation), ACT2FN[activation](result), atol=1e-6)
    for residual in (torch.randn(9, outputs).to(dtype), torch.randn(9, outputs)):
        assert torch.equal(matrix.add(x, residual.clone()), residual + result)
    alone = torch.cat([matrix.apply(row[None]) for row in x])
    assert torch.allclose(alone, result, atol=1e-5 if dtype == torch.float32 else 0.05)


def test_a_neighbour_changes_nothing_in_eight_bits() -> None:
    matrix, x = quantize("bnb-int8", torch.randn(24, 32), None), torch.randn(6, 32)
    alone = matrix.apply(x[:1])
    x[3] *= 1000  # an outlier in every column
    assert torch.equal(matrix.apply(x)[:1], alone)


@pytest.mark.parametrize(("kind", "bytes_each"), [("bnb-int8", 128 + 4), ("bnb-nf4", 128 / 2 + 2 * 4)])
def test_what_a_weight_takes(kind: str, bytes_each: float) -> None:
    assert quantize(kind, torch.randn(64, 128), None).nbytes == 64 * bytes_each
    assert bytes_each / 128 == pytest.approx(BYTES_PER_WEIGHT[kind], rel=0.04)


@pytest.mark.parametrize("kind", ERRORS)
@torch.inference_mode()
def test_logits_are_near_and_less_memory_is_wanted(directory: Path, kind: str) -> None:
    spec = Model.open(directory).spec
    sources, wanted = texts(spec, [5, 70, 1, 33]), targets(spec, 4)
    config = replace(CONFIG, dtype="float32", quantization=kind)
    engine = Engine.load(Model.open(directory), config)
    assert isinstance(engine._backend, TorchBackend)
    ours = backend_logits(engine._backend, sources, wanted)
    expected = backend_logits(load_backend(directory, "float32", slots=4), sources, wanted)
    assert 0 < (ours - expected).norm() < 5 * ERRORS[kind] * expected.norm()
    assert weight_bytes(spec, torch.float32, kind) < weight_bytes(spec, torch.float32, "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": "int4"}, "quantization 'int4' is not known: use 'none', 'bnb-int8' or 'bnb-nf4'"),
        ({"quantization": "bnb-nf4", "backend": "native"}, "quantization 'bnb-nf4' needs PyTorch"),
        ({"quantization": "bnb-nf4", "dtype": "int8"}, "dtype 'int8' and quantization 'bnb-nf4' cannot be combined"),
        ({"quantization": "bnb-nf4", "dtype": "float64"}, "quantization 'bnb-nf4' cannot compute in float64"),
        ({"graphs": "always"}, "graphs 'always' is not known: use 'auto', 'on' or 'off'"),
        ({"graphs": "on", "backend": "native"}, "backend 'native' is not possible: graphs need PyTorch"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(directory: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(LoadError, match=message):
        Engine.load(Model.open(directory), replace(CONFIG, **changes))  # type: ignore[arg-type]


def test_without_the_library_or_its_operations_loading_ends_in_an_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, quantization="bnb-int8")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(
            LoadError, match=r"quantization 'bnb-int8' needs bitsandbytes .*: install it, or use 'none'"
        ):
            Engine.load(Model.open(directory), config)

    class Broken:
        def int8_vectorwise_quant(self, x: torch.Tensor) -> None:
            raise RuntimeError("no such operation\nand a stack trace")

        functional = property(lambda self: self)

    monkeypatch.setattr(bitsandbytes_matrix, "_bitsandbytes", Broken)
    with pytest.raises(LoadError, match="is not possible on 'cpu': bitsandbytes says 'no such operation'; use 'none'"):
        check_bitsandbytes("bnb-int8", dtype=torch.float32, device=torch.device("cpu"))


def test_the_engine_does_not_load_it_for_nothing() -> None:
    assert "bitsandbytes" not in vars(importlib.import_module("server.engine.pytorch.matrices.bitsandbytes_matrix"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ERRORS)
@torch.inference_mode()
def test_on_cuda_it_is_near_and_can_be_recorded(directory: Path, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    spec = Model.open(directory).spec
    sources, wanted = texts(spec, [5, 70, 1, 33]), targets(spec, 4)
    expected = backend_logits(load_backend(directory, "float32", slots=4), sources, wanted)
    for graphs in ("on", "off"):
        config = replace(CONFIG, dtype="bfloat16", device="cuda", quantization=kind, graphs=graphs)
        ours = backend_logits(TorchBackend.load(Model.open(directory), config, torch.bfloat16), sources, wanted).cpu()
        assert (ours - expected).norm() < 5 * ERRORS[kind] * expected.norm()
