"""Norms without weights, with their weights folded into what follows, are transformers' norms."""

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5LayerNorm

from server.engine.pytorch.norm import FusedRMSNorm, LayerNorm, PlainRMSNorm
from server.engine.weights.folding import fold_norm
from server.engine.weights.network import Linear, Norm


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_after_the_folded_norm_is_one_after_t5_s(scale: float, dtype: torch.dtype) -> None:
    x, weight = scale * torch.randn(3, 32, dtype=dtype), torch.randn(10, 32, dtype=dtype)
    x[1] = 0
    theirs = T5LayerNorm(32, eps=1e-3)
    theirs.weight.data.uniform_(0.5, 1.5)
    norm = PlainRMSNorm(width=32, eps=1e-3, dtype=dtype, device=torch.device("cpu"))
    weights = Norm(gain_D=theirs.weight.detach().to(dtype), shift_D=None)
    folded = fold_norm(Linear(weight_OI=weight, bias_O=None), weights)
    assert folded.bias_O is None
    ours = norm.factor * norm(x) @ folded.weight_OI.t()
    assert torch.allclose(ours, theirs(x).to(dtype) @ weight.t(), rtol=1e-5, atol=1e-5)
    assert norm(x).dtype == dtype


def test_half_precision_is_normed_in_float32() -> None:
    x = 300 * torch.ones(1, 4096, dtype=torch.float16)  # |x|^2 overflows float16
    norm = PlainRMSNorm(width=4096, eps=1e-6, dtype=torch.float16, device=torch.device("cpu"))
    fused = FusedRMSNorm(width=4096, eps=1e-6, dtype=torch.float16)
    for residual in (x, x.float()):
        assert norm(residual).dtype == fused(residual).dtype == torch.float16
        assert torch.allclose(norm(residual).float(), torch.full((1, 4096), 1 / 64))
        assert torch.allclose(fused(residual).float(), torch.ones(1, 4096))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_forms_of_the_rms_norm_are_one(dtype: torch.dtype) -> None:
    x = torch.randn(3, 32, dtype=dtype)
    x[1] = 0
    plain = PlainRMSNorm(width=32, eps=1e-3, dtype=dtype, device=torch.device("cpu"))
    fused = FusedRMSNorm(width=32, eps=1e-3, dtype=dtype)
    assert torch.allclose(plain.factor * plain(x), fused.factor * fused(x), rtol=1e-5)


@pytest.mark.parametrize("biased", [True, False])
def test_a_linear_map_after_the_folded_layer_norm_is_one_after_torch_s(biased: bool) -> None:
    theirs = torch.nn.LayerNorm(32, eps=1e-5, dtype=torch.float64)
    map_after = torch.nn.Linear(32, 10, bias=biased, dtype=torch.float64)
    for parameter in (theirs.weight, theirs.bias):
        parameter.data.normal_()
    x = 3 + torch.randn(4, 32, dtype=torch.float64)
    bias = map_after.bias.data if biased else None
    folded = fold_norm(
        Linear(weight_OI=map_after.weight.data, bias_O=bias),
        Norm(gain_D=theirs.weight.data, shift_D=theirs.bias.data),
    )
    normed = LayerNorm(width=32, eps=1e-5)(x)
    assert folded.bias_O is not None
    ours = normed @ folded.weight_OI.t() + folded.bias_O
    assert torch.allclose(ours, map_after(theirs(x)), rtol=1e-12, atol=1e-12)
