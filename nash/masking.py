"""Gates on a student's encoder: where they sit, and how they multiply its activations.

A head's gate multiplies what the head hands to the output projection, a unit's gate what the unit hands to the
feed-forward output matrix. Both sit in front of a linear map, so a gate's value folds into that map's columns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from model_store.spec import ModelSpec
from nash import gates

INITIAL_ALPHA = 3.0  # open: the gate is exactly 1 in more than four of five draws


@dataclass(frozen=True, kw_only=True)
class EncoderMask:
    """For every encoder layer, a value for each head [H] and each feed-forward unit [F]; 0 is closed."""

    heads: list[Tensor]
    units: list[Tensor]


@dataclass(frozen=True, kw_only=True)
class HardenedGates:
    """The decision after pruning: what stays, and the value that is folded into the weights of what stays."""

    values: EncoderMask
    kept: EncoderMask  # boolean tensors

    def mask(self) -> EncoderMask:
        """The mask under which the uncut student computes what the compact model will."""
        return EncoderMask(
            heads=[v * k for v, k in zip(self.values.heads, self.kept.heads, strict=True)],
            units=[v * k for v, k in zip(self.values.units, self.kept.units, strict=True)],
        )


class EncoderGates(nn.Module):
    """The gates' parameters and the two Lagrange multipliers of their sparsity.

    A submodule of the student while it is pruned, so that the Trainer's checkpoints hold it.
    """

    def __init__(self, spec: ModelSpec, *, heads: bool, units: bool) -> None:
        super().__init__()
        layers = len(spec.encoder)
        self.head_weights, self.unit_weights = float(spec.head_weights), float(spec.unit_weights)
        self.head_alphas = _alphas(layers, spec.num_heads, trained=heads)
        self.unit_alphas = _alphas(layers, spec.d_ff, trained=units)
        self.multipliers_2 = nn.Parameter(torch.zeros(2))

    def alphas(self) -> tuple[list[Tensor], list[float]]:
        """All alphas, heads first, and the weights that one gate of each holds."""
        heads, units = list(self.head_alphas), list(self.unit_alphas)
        return [*heads, *units], [self.head_weights] * len(heads) + [self.unit_weights] * len(units)

    def sparsity(self) -> Tensor:
        """The expected sparsity. Gates that are not trained count as open."""
        alphas, weights = self.alphas()
        kept = [gates.open_probability(a) if a.requires_grad else torch.ones_like(a) for a in alphas]
        expected = torch.stack([p.sum() * w for p, w in zip(kept, weights, strict=True)]).sum()
        return 1.0 - expected / sum(a.numel() * w for a, w in zip(alphas, weights, strict=True))

    def draw(self) -> EncoderMask:
        """Sample every trained gate, once for a forward pass."""
        self._clamp()
        return EncoderMask(
            heads=[_draw(alpha) for alpha in self.head_alphas],
            units=[_draw(alpha) for alpha in self.unit_alphas],
        )

    def expected(self) -> EncoderMask:
        """Every gate's value without noise."""
        return EncoderMask(
            heads=[_without_noise(alpha) for alpha in self.head_alphas],
            units=[_without_noise(alpha) for alpha in self.unit_alphas],
        )

    def harden(self, target: float) -> HardenedGates:
        """Decide every gate so that the realised sparsity is the nearest to `target`, within one gate."""
        self._clamp()
        alphas, weights = self.alphas()
        # A gate that was not trained has no say in what is cut: it is given the highest rank of all.
        ranked = [a if a.requires_grad else torch.full_like(a, torch.inf) for a in alphas]
        kept = gates.harden(ranked, weights, target)
        values = [_without_noise(a).detach() for a in alphas]
        layers = len(self.head_alphas)
        return HardenedGates(
            values=EncoderMask(heads=values[:layers], units=values[layers:]),
            kept=EncoderMask(heads=kept[:layers], units=kept[layers:]),
        )

    @torch.no_grad()
    def _clamp(self) -> None:
        """Keep the optimizer from running away to where a gate's gradient is nothing."""
        for alpha in (*self.head_alphas, *self.unit_alphas):
            alpha.clamp_(-gates.MAX_ALPHA, gates.MAX_ALPHA)


def _alphas(layers: int, width: int, *, trained: bool) -> nn.ParameterList:
    return nn.ParameterList(
        nn.Parameter(torch.full((width,), INITIAL_ALPHA), requires_grad=trained) for _ in range(layers)
    )


def _draw(alpha: Tensor) -> Tensor:
    return gates.sample(alpha, torch.rand_like(alpha)) if alpha.requires_grad else torch.ones_like(alpha)


def _without_noise(alpha: Tensor) -> Tensor:
    return gates.deterministic(alpha) if alpha.requires_grad else torch.ones_like(alpha)


@contextmanager
def masked(student: T5ForConditionalGeneration, mask: EncoderMask) -> Iterator[None]:
    """Within the block, the student's encoder computes under `mask`."""
    hooks = []
    for block, heads, units in zip(student.encoder.block, mask.heads, mask.units, strict=True):
        attention = block.layer[0].SelfAttention
        by_column = heads.repeat_interleave(attention.key_value_proj_dim)
        hooks.append(attention.o.register_forward_pre_hook(_multiply(by_column)))
        hooks.append(block.layer[-1].DenseReluDense.wo.register_forward_pre_hook(_multiply(units)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _multiply(factor: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A pre-hook that multiplies the last axis of a module's input."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * factor.to(inputs[0].dtype), *inputs[1:])

    return hook
