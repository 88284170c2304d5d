"""A model whose hidden states keep only some of their dimensions."""

from typing import Any

import torch
from torch import Size, Tensor, nn
from transformers import PreTrainedModel

from model_store.model.config import layout_of
from model_store.model.layout import STACKS
from model_store.model.spec import ModelSpec

# The attributes in which PyTorch's modules repeat the width of their tensors: the name, and the tensor's axis.
_WIDTHS: tuple[tuple[type[nn.Module], str, int], ...] = (
    (nn.Linear, "in_features", 1),
    (nn.Linear, "out_features", 0),
    (nn.Embedding, "embedding_dim", 1),
)


def keep_hidden(model: PreTrainedModel, spec: ModelSpec) -> None:
    """Narrow a fresh model's hidden states to those of `spec`. Its other widths are those of `spec` already.

    Matrices that are one stay one. A table of sinusoids stays whole, as the wavelengths are those of the dense model.
    """
    if spec.width == spec.d_model:
        return
    layout = layout_of(spec)
    sinusoids = [layout.positions(stack) for stack in STACKS] if spec.facts.sinusoids else []
    wanted = dict(layout.optional_shapes()) | dict(layout.shapes())
    narrowed: dict[int, nn.Parameter] = {}
    for name, old in list(model.named_parameters(remove_duplicate=False)):
        place, _, attribute = name.rpartition(".")
        if name not in wanted or place in sinusoids:
            continue
        if id(old) not in narrowed:
            narrowed[id(old)] = nn.Parameter(only_kept(old.detach(), Size(wanted[name]), spec), old.requires_grad)
        module, new = model.get_submodule(place), narrowed[id(old)]
        setattr(module, attribute, new)
        for kind, width, axis in _WIDTHS:
            if isinstance(module, kind) and attribute == "weight":
                setattr(module, width, new.shape[axis])
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.normalized_shape = tuple(new.shape)
    for table in sinusoids:
        _read_kept(model.get_submodule(table), spec)


def only_kept(tensor: Tensor, shape: Size, spec: ModelSpec) -> Tensor:
    """The tensor without the dimensions of the hidden states that `spec` lacks; `shape` is what it then has."""
    for axis, (size, wanted) in enumerate(zip(tensor.shape, shape, strict=True)):
        if size != wanted:
            tensor = tensor.index_select(axis, torch.tensor(spec.hidden, device=tensor.device))
    return tensor


class _KeptDimensions(nn.Module):
    """Precedes a table of positions in the bases of a class that reads only the kept dimensions of it."""

    kept: list[int]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        positions: Tensor = super().forward(*args, **kwargs)
        return positions[..., self.kept]


def _read_kept(table: nn.Module, spec: ModelSpec) -> None:
    stock = type(table)
    table.__class__ = type(f"Kept{stock.__name__}", (_KeptDimensions, stock), {})
    assert isinstance(table, _KeptDimensions)
    table.kept = list(spec.hidden)
