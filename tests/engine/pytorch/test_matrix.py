"""Matrices give the product."""

import pytest
import torch
from transformers.activations import ACT2FN

from server.engine.pytorch.matrices.matrix import DenseMatrix, WideMatrix


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 20), (20, 48), (1, 7), (33, 1)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new", "silu"])
def test_it_gives_the_product(rows: int, outputs: int, inputs: int, biased: bool, activation: str) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(outputs, inputs, generator=generator), torch.randn(rows, inputs, generator=generator)
    residual = torch.randn(rows, outputs, generator=generator)
    bias = torch.randn(outputs, generator=generator) if biased else None
    exact = x.double() @ weight.double().t()
    exact = exact if bias is None else exact + bias
    matrix = DenseMatrix(weight, bias)
    for result, expected in (
        (matrix.apply(x), exact),
        (matrix.activate(x, activation), ACT2FN[activation](exact)),
        (matrix.add(x, residual.clone()), residual + exact),
    ):
        assert torch.allclose(result.double(), expected, atol=1e-5)


def test_a_wide_matrix_takes_half_precision_and_adds_in_float32() -> None:
    weight, x = 1e4 * torch.randn(8, 20), torch.randn(3, 20).half()
    matrix, residual = WideMatrix(weight, None), torch.randn(3, 8)
    exact = x.float() @ weight.t()
    assert exact.abs().max() > torch.finfo(torch.float16).max / 2
    for start in (residual, residual.half()):
        total = matrix.add(x, start.clone())
        assert total.dtype == torch.float32
        assert torch.allclose(total, start.float() + exact, rtol=1e-5)
    assert torch.allclose(matrix.activate(x, "relu"), matrix.apply(x).relu())
    assert DenseMatrix(weight.half(), None).add(x, residual.clone()).dtype == torch.float32
