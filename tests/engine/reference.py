"""What transformers says, and what the engine says, of the same model: the two sides of every comparison."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5LayerNorm

from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from server.engine.backend import Feed
from server.engine.interface.config import EngineConfig
from server.engine.pytorch.backend import TorchBackend
from tests.tiny_models import CHARACTERS, EOS_ID, PAD_ID, VOCABULARY

NEAR_TIE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A greedy answer without the start token, and by how much each token beat the second best."""

    tokens: list[int]
    margins: list[float]


class NearTies:
    """Compares tokens: a difference is allowed from where the reference itself was undecided, and counted."""

    def __init__(self) -> None:
        self.compared = 0
        self.undecided = 0

    def check(self, ours: list[int], reference: Answer) -> None:
        self.compared += 1
        for position, (token, expected) in enumerate(zip(ours, reference.tokens, strict=False)):
            if token != expected:
                assert reference.margins[position] < NEAR_TIE, f"{ours} is not {reference.tokens}"
                self.undecided += 1
                return
        assert len(ours) == len(reference.tokens), f"{ours} is not {reference.tokens}"


def random_sources(count: int, *, longest: int, seed: int = 0) -> list[list[int]]:
    """Sources of one to `longest` tokens, the end token last."""
    generator = random.Random(seed)
    letters = [VOCABULARY[c] for c in CHARACTERS]
    return [[*generator.choices(letters, k=generator.randrange(longest)), EOS_ID] for _ in range(count)]


def load_reference(directory: Path, dtype: torch.dtype = torch.float32) -> T5ForConditionalGeneration:
    """The model in transformers; in float64 its norms too, which transformers computes in float32 at most."""
    model: T5ForConditionalGeneration = T5ForConditionalGeneration.from_pretrained(directory, dtype=dtype)
    if dtype == torch.float64:
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, T5LayerNorm):
                    norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                    norm.weight = child.weight
                    setattr(module, name, norm)
    return model.eval()


def reference_answers(
    model: T5ForConditionalGeneration, sources: list[list[int]], max_new_tokens: int, *, batch: int = 1
) -> list[Answer]:
    """Greedy answers of transformers' `generate`, each source alone or in padded batches."""
    answers: list[Answer] = []
    for start in range(0, len(sources), batch):
        chosen = sources[start : start + batch]
        size = max(len(source) for source in chosen)
        output = model.generate(
            torch.tensor([source + [PAD_ID] * (size - len(source)) for source in chosen]),
            attention_mask=torch.tensor([[1] * len(s) + [0] * (size - len(s)) for s in chosen]),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best_two = torch.stack(output.logits, dim=1).topk(2).values
        margins = (best_two[..., 0] - best_two[..., 1]).tolist()
        for tokens, margin in zip(output.sequences[:, 1:].tolist(), margins, strict=True):
            length = tokens.index(EOS_ID) + 1 if EOS_ID in tokens else len(tokens)
            answers.append(Answer(tokens=tokens[:length], margins=margin[:length]))
    return answers


@torch.inference_mode()
def reference_logits(model: T5ForConditionalGeneration, source: list[int], target: list[int]) -> Tensor:
    """Logits [len(target), vocabulary] of one source, teacher-forced."""
    logits: Tensor = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target])).logits[0]
    return logits


@torch.inference_mode()
def engine_logits(
    directory: Path, spec: ModelSpec, dtype: str, sources: list[list[int]], targets: list[list[int]]
) -> list[Tensor]:
    """The same through the engine's PyTorch backend, all sources in one padded batch; targets of equal length."""
    count, steps = len(sources), len(targets[0])
    config = EngineConfig(
        dtype=dtype, slots=count, max_source_tokens=max(len(s) for s in sources), max_new_tokens=steps
    )
    backend = TorchBackend.load(Model.open(directory), config, getattr(torch, dtype))
    backend.encode(sources, [[slot] for slot in range(count)])
    rows = list(range(count))
    by_step = [
        backend.decode(
            Feed(tokens=[target[i] for target in targets], positions=[i] * count, slots=rows, wanted=rows)
        ).clone()
        for i in range(steps)
    ]
    return list(torch.stack(by_step, dim=1))
