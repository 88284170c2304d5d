"""Gates on the dimensions of the hidden states: what a student computes under them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model_store.model.config import layout_of, spec_of
from model_store.model.layout import STACKS, Layout


def forwards_under(student: PreTrainedModel, values_D: Tensor) -> dict[nn.Module, Callable[..., Tensor]]:
    """The forwards of all modules that write or read the hidden states, sublayers apart, under these values.

    What is written is multiplied by the values, and so is what the output matrix reads, which may be the embedding.
    Sinusoids are not: no weight could take a value up, so their dimensions are only open or closed. A norm takes its
    mean over the open dimensions; the closed ones of its output are 0.
    """
    layout = layout_of(spec_of(student.config.to_dict()))
    open_D = values_D != 0
    output = student.get_submodule(layout.output)
    forwards: dict[nn.Module, Callable[..., Tensor]] = {output: _reading(output, values_D)}
    for table in tables(student, layout):
        if table is not output:
            forwards[table] = _scaled(table, values_D)
    if layout.spec.facts.sinusoids:
        for stack in STACKS:
            positions = student.get_submodule(layout.positions(stack))
            forwards[positions] = _scaled(positions, open_D)
    modules = dict(student.named_modules())
    for name in _norms(layout):
        if name in modules:
            forwards[modules[name]] = _norm(modules[name], open_D, layout)
    return forwards


def tables(model: PreTrainedModel, layout: Layout) -> list[nn.Module]:
    """The modules whose weights' columns belong to the dimensions of the hidden states: rows of it, or read with it."""
    found = [model.get_submodule(layout.output)]
    found += [half.get_input_embeddings() for half in (model.get_encoder(), model.get_decoder())]
    if layout.spec.facts.positions == "learned":
        found += [model.get_submodule(layout.positions(stack)) for stack in STACKS]
    return found


def _norms(layout: Layout) -> set[str]:
    facts = layout.spec.facts
    found = {sublayer.norm for sublayer in layout.sublayers()}
    if facts.embeds_norm:
        found |= {layout.embedding_norm(stack) for stack in STACKS}
    if facts.norm_first:
        found |= {layout.final_norm(stack) for stack in STACKS}
    return found


def _scaled(module: nn.Module, values_D: Tensor) -> Callable[..., Tensor]:
    stock = module.forward

    def forward(*args: object, **kwargs: object) -> Tensor:
        written: Tensor = stock(*args, **kwargs)
        return written * values_D.to(written.dtype)

    return forward


def _reading(module: nn.Module, values_D: Tensor) -> Callable[[Tensor], Tensor]:
    stock = module.forward

    def forward(hidden: Tensor) -> Tensor:
        read: Tensor = stock(hidden * values_D.to(hidden.dtype))
        return read

    return forward


def _norm(module: nn.Module, open_D: Tensor, layout: Layout) -> Callable[[Tensor], Tensor]:
    """RMSNorm or LayerNorm over the open dimensions; inputs are 0 in the closed ones. Half precision widens inside."""
    eps, subtracts_mean = layout.spec.layer_norm_eps, layout.biases

    def forward(hidden: Tensor) -> Tensor:
        states = hidden.float() if hidden.dtype.itemsize < 4 else hidden
        mask = open_D.to(states.dtype)
        count = mask.sum().clamp(min=1)  # a draw may close every dimension
        if subtracts_mean:
            states = (states - states.sum(-1, keepdim=True) / count) * mask
        states = states * torch.rsqrt(states.square().sum(-1, keepdim=True) / count + eps)
        weight = module.get_parameter("weight")
        normed = states.to(weight.dtype) * weight
        if not subtracts_mean:
            return normed
        return normed + module.get_parameter("bias") * mask.to(weight.dtype)

    return forward
