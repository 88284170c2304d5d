"""Every layout of a matrix gives the same product, and the folded norm is T5's."""

import pytest
import torch
from transformers.activations import ACT2FN
from transformers.models.t5.modeling_t5 import T5LayerNorm

from server.engine.matrix import SINGLE_ROW_COPY_BYTES, Norm, PackedMatrix, PlainMatrix, fold_norm, lay_out


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 20), (20, 48), (1, 7), (33, 1)])
@pytest.mark.parametrize("single_rows", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new", "silu"])
def test_both_layouts_give_the_product(
    rows: int, outputs: int, inputs: int, single_rows: bool, activation: str
) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight, x = torch.randn(outputs, inputs, generator=generator), torch.randn(rows, inputs, generator=generator)
    residual = torch.randn(rows, outputs, generator=generator)
    exact = x.double() @ weight.double().t()
    for matrix in (PackedMatrix(weight, single_rows=single_rows), PlainMatrix(weight)):
        kept = residual.clone()
        for result, expected in (
            (matrix.apply(x), exact),
            (matrix.activate(x, activation), ACT2FN[activation](exact)),
            (matrix.add(x, residual), residual + exact),
        ):
            assert torch.allclose(result.double(), expected, atol=1e-5)
        assert torch.equal(residual, kept), "the residual was changed"


def test_small_matrices_alone_keep_a_second_copy() -> None:
    small, large = torch.zeros(8, 8), torch.zeros(1, SINGLE_ROW_COPY_BYTES // 4 + 1)
    assert PackedMatrix(small, single_rows=True).nbytes == 2 * small.nbytes
    assert PackedMatrix(small, single_rows=False).nbytes == small.nbytes
    assert PackedMatrix(large, single_rows=True).nbytes == large.nbytes


def test_float64_is_not_packed() -> None:
    assert isinstance(lay_out(torch.zeros(2, 2, dtype=torch.float64), single_rows=True), PlainMatrix)
    assert isinstance(lay_out(torch.zeros(2, 2), single_rows=True), PackedMatrix)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_after_the_folded_norm_is_one_after_t5_s(scale: float, dtype: torch.dtype) -> None:
    x, weight = scale * torch.randn(3, 32, dtype=dtype), torch.randn(10, 32, dtype=dtype)
    x[1] = 0
    theirs = T5LayerNorm(32, eps=1e-3)
    theirs.weight.data.uniform_(0.5, 1.5)
    norm = Norm(width=32, eps=1e-3, dtype=dtype, device=torch.device("cpu"))
    folded = fold_norm(weight, theirs.weight.detach().to(dtype))
    assert torch.allclose(norm(x) @ folded.t(), theirs(x).to(dtype) @ weight.t(), rtol=1e-5, atol=1e-5)
    assert norm(x).dtype == dtype


def test_half_precision_is_normed_in_float32() -> None:
    x = 300 * torch.ones(1, 4096, dtype=torch.float16)  # |x|^2 overflows float16
    norm = Norm(width=4096, eps=1e-6, dtype=torch.float16, device=torch.device("cpu"))
    assert norm(x).dtype == torch.float16
    assert torch.allclose(norm(x).float(), torch.full((1, 4096), 1 / 64))
