"""int8 in PyTorch: its numbers are the native operator's, and a row's are its own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.activations import ACT2FN

from model_store.model.model import Model
from server.engine import capabilities
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.native.backend import NativeBackend
from server.engine.native.operator import library as native
from server.engine.pytorch.backend import TorchBackend
from server.engine.pytorch.matrices import int8_matrix
from server.engine.pytorch.matrices.int8_matrix import Int8Matrix
from tests.engine.compact import write_compact
from tests.engine.family_reference import backend_logits, targets, texts

CONFIG = EngineConfig(dtype="int8", backend="torch", slots=5, max_source_tokens=70, max_new_tokens=21)


def load(directory: Path, dtype: str) -> TorchBackend:
    return TorchBackend.load(Model.open(directory), replace(CONFIG, dtype=dtype), torch.float32)


def make_pair(outputs: int, inputs: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Int8Matrix, Int8Matrix]:
    """The same matrix in whole numbers, and as on a processor that cannot multiply them exactly."""
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(outputs, inputs, generator=generator)
    weight[0] = 0
    bias = torch.randn(outputs, generator=generator)
    matrices = []
    for exact in (True, False):
        monkeypatch.setattr(int8_matrix, "int8_products_are_exact", lambda exact=exact: exact)
        matrices.append(Int8Matrix(weight.clone(), bias))
    return matrices[0], matrices[1]


@pytest.mark.skipif(not int8_matrix.int8_products_are_exact(), reason="this processor's int8 sums saturate")
@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 20), (20, 48), (1, 7), (33, 2), (64, 700)])
def test_both_forms_give_the_product_of_the_rounded_numbers(
    rows: int, outputs: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, floating = make_pair(outputs, inputs, rows, monkeypatch)
    x, residual = torch.randn(rows, inputs) * torch.logspace(-3, 3, rows)[:, None], torch.randn(rows, outputs)
    x[-1, 0] = 0
    result = whole.apply(x)
    assert torch.equal(result, floating.apply(x))
    step = torch.where(x.abs().amax(1, keepdim=True) == 0, 1.0, x.abs().amax(1, keepdim=True) / 127).double()
    weight = floating._steps_IO.double() * floating._scale_O.double()
    assert floating._bias_O is not None
    exact = ((x / step).round() * step) @ weight + floating._bias_O
    assert torch.allclose(result.double(), exact, rtol=1e-5, atol=1e-5 * step.max().item())
    assert torch.equal(whole.add(x, residual.clone()), residual + result)
    for activation in ("relu", "gelu", "gelu_new", "silu"):
        assert torch.allclose(whole.activate(x, activation), ACT2FN[activation](result), atol=1e-5)
    assert whole.nbytes == outputs * (inputs + 4 + 4)
    assert floating.nbytes == outputs * (4 * inputs + 4 + 4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 600), st.randoms(use_true_random=False))
def test_a_row_is_the_same_in_any_company(rows: int, inputs: int, draw: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(rows * inputs)
    matrix = Int8Matrix(torch.randn(24, inputs, generator=generator), None)
    x = torch.randn(rows, inputs, generator=generator)
    x[:, 0] *= 1000
    together = matrix.apply(x)
    row = draw.randrange(rows)  # type: ignore[attr-defined]
    assert torch.equal(matrix.apply(x[row : row + 1])[0], together[row])


def test_what_is_not_finite_stays_in_its_row() -> None:
    matrix, x = Int8Matrix(torch.randn(8, 20), None), torch.randn(3, 20)
    x[0, 3], x[2, 5] = torch.nan, torch.inf
    assert matrix.apply(x).isfinite().all(1).tolist() == [False, True, False]


@torch.inference_mode()
def test_logits_are_near(dense_dir: Path) -> None:
    spec = Model.open(dense_dir).spec
    sources, wanted = texts(spec, [5, 70, 1, 33]), targets(spec, 4)
    expected, ours = (backend_logits(load(dense_dir, dtype), sources, wanted) for dtype in ("float32", "int8"))
    assert 0 < (ours - expected).norm() < 0.1 * expected.norm()


@pytest.mark.skipif(native.library() is None, reason="the native operator is not here")
@torch.inference_mode()
def test_logits_are_those_of_the_native_operator(dense_dir: Path, tmp_path: Path) -> None:
    """Without attention, whose keys and values the operator keeps in bfloat16, as it keeps embeddings."""
    dense = Model.open(dense_dir).spec
    layers = tuple(replace(layer, self_heads=(), cross_heads=()) for layer in dense.decoder)
    directory = write_compact(dense_dir, replace(dense, decoder=layers), tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    tensors["shared.weight"] = tensors["shared.weight"].bfloat16().float()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    spec = Model.open(directory).spec
    sources, wanted = texts(spec, [3] * 5), targets(spec, 5)
    exact, ours = (backend_logits(load(directory, dtype), sources, wanted) for dtype in ("float32", "int8"))
    theirs = backend_logits(NativeBackend.load(Model.open(directory), replace(CONFIG, backend="auto")), sources, wanted)
    error, difference = (ours - exact).abs().amax(-1), (ours - theirs).abs().amax(-1)
    same = difference <= 1e-5 * ours.abs().max()
    assert same.float().mean() > 0.9  # elsewhere a number stood between two steps
    assert difference.norm() < 0.5 * error.norm()


def test_an_answer_is_the_same_alone_and_in_company(t5_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "torch_int8", lambda: None)  # refused where it is slow, right everywhere
    engine = Engine.load(Model.open(t5_dir), CONFIG)
    assert isinstance(engine._backend, TorchBackend)
    sources = texts(engine.spec, [9, 40, 2, 17, 33, 8, 70])
    parameters = GenerationParameters(max_new_tokens=21, ignore_eos=True)
    together = [sequence.tokens for sequence in engine.generate(sources, parameters)]
    alone = [engine.generate([source], parameters)[0].tokens for source in sources]
    assert together == alone
