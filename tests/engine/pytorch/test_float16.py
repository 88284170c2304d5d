"""float16 as transformers computes it, on the CPU, which can, though the engine only offers it on CUDA."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from model_store.model.model import Model
from server.engine.interface.config import EngineConfig
from server.engine.pytorch.backend import TorchBackend
from server.engine.pytorch.matrices.matrix import WideMatrix
from server.engine.pytorch.model import FeedForward
from tests.engine.family_reference import backend_logits, expected_logits, load_backend, targets, texts
from tests.tiny_families import CASES, build_tiny
from tests.tiny_models import build_tiny_t5


@torch.inference_mode()
def test_t5_s_wo_stays_in_float32_where_float16_would_overflow(tmp_path: Path) -> None:
    directory = build_tiny_t5(tmp_path / "model", gated=True, tied=False)
    tensors = load_file(directory / "model.safetensors")
    for name in tensors:
        if name.endswith("DenseReluDense.wo.weight"):
            tensors[name] *= 1e5  # the residual is beyond float16's 65504 from the first of them on
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    spec = Model.open(directory).spec
    backend = load_backend(directory, "float16", slots=3)
    sources, wanted = texts(spec, [9, 30, 2]), targets(spec, 3)
    ours = backend_logits(backend, sources, wanted)
    exact, half = (
        T5ForConditionalGeneration.from_pretrained(directory, dtype=dtype).eval()
        for dtype in (torch.float32, torch.float16)
    )
    assert half.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32
    true, theirs = (
        torch.stack([expected_logits(model, s, t) for s, t in zip(sources, wanted, strict=True)]).float()
        for model in (exact, half)
    )
    assert theirs.isfinite().all()
    assert ours.dtype == torch.float32
    assert (ours - true).norm() <= 1.5 * (theirs - true).norm()
    hidden = exact.encoder(torch.tensor([sources[0]]), output_hidden_states=True).hidden_states[1]
    assert hidden.abs().max() > torch.finfo(torch.float16).max


@pytest.mark.parametrize(("family", "wide"), [("mt5", True), ("umt5", True), ("bart", False)])
def test_the_rule_is_t5_s_alone(family: str, wide: bool, tmp_path: Path) -> None:
    directory = build_tiny(CASES[family], tmp_path / "model")
    model = load_backend(directory, "float16", slots=1)._model
    sublayers = [layer.ffn for layer in model.encoder.layers] + [layer.ffn for layer in model.decoder.layers]
    assert {isinstance(ffn.out, WideMatrix) for ffn in sublayers if isinstance(ffn, FeedForward)} == {wide}
    other = load_backend(directory, "bfloat16", slots=1)._model.encoder.layers[0].ffn
    assert isinstance(other, FeedForward)
    assert not isinstance(other.out, WideMatrix)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
def test_on_cuda_it_is_near_too(tmp_path: Path) -> None:
    directory = build_tiny(CASES["mt5"], tmp_path / "model")
    spec = Model.open(directory).spec
    sources, wanted = texts(spec, [9, 30, 2]), targets(spec, 3)
    expected = backend_logits(load_backend(directory, "float32", slots=3), sources, wanted)
    config = EngineConfig(dtype="float16", device="cuda", slots=3, max_source_tokens=70, max_new_tokens=21)
    ours = backend_logits(TorchBackend.load(Model.open(directory), config, torch.float16), sources, wanted).cpu()
    assert (ours - expected).norm() < 0.02 * expected.norm()
