"""A family's model in transformers and in the engine, and what either says."""

import random
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from server.engine.backend import Backend, Feed
from server.engine.interface.config import EngineConfig
from server.engine.pytorch.backend import TorchBackend
from tests.tiny_families import FIRST_TOKEN, Case

TOLERANCES = {"float32": 1e-5, "float64": 1e-10}
STEPS = 21


def texts(spec: ModelSpec, lengths: list[int], *, seed: int = 0) -> list[list[int]]:
    """Random sources of these lengths, the end token last."""
    draw, most = random.Random(seed), min(spec.vocab_size, spec.target_vocab_size)
    return [[*(draw.randrange(FIRST_TOKEN, most) for _ in range(n - 1)), spec.eos_id] for n in lengths]


def targets(spec: ModelSpec, count: int, *, seed: int = 1) -> list[list[int]]:
    """What the decoder reads: its start token and random ones."""
    bodies = texts(spec, [STEPS] * count, seed=seed)
    return [[spec.decoder_start_id, *body[:-1]] for body in bodies]


def load_reference(case: Case, directory: Path, dtype: str) -> PreTrainedModel:
    """The model in transformers; in float64 its RMS norms too, which transformers computes in float32 at most."""
    model = case.model.from_pretrained(directory, dtype=getattr(torch, dtype))
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("T5LayerNorm") and dtype == "float64":
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)
    return model.eval()


@torch.inference_mode()
def expected_logits(model: PreTrainedModel, source: list[int], target: list[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target])).logits[0]
    return logits


def load_backend(directory: Path, dtype: str, *, slots: int) -> TorchBackend:
    config = EngineConfig(dtype=dtype, slots=slots, max_source_tokens=70, max_new_tokens=STEPS)
    return TorchBackend.load(Model.open(directory), config, getattr(torch, dtype))


def check(ours: Tensor, expected: Tensor, tolerance: float) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max().item() <= tolerance * max(1.0, expected.abs().max().item())


@torch.inference_mode()
def backend_logits(backend: Backend, sources: list[list[int]], targets: list[list[int]]) -> Tensor:
    """Logits [source, step, vocabulary] of targets of equal length, step by step, one slot for each."""
    rows = list(range(len(sources)))
    backend.encode(sources, [[row] for row in rows])
    steps = [
        backend.decode(Feed(tokens=[t[i] for t in targets], positions=[i] * len(rows), slots=rows, wanted=rows)).clone()
        for i in range(len(targets[0]))
    ]
    return torch.stack(steps, dim=1)
