"""Gates on a student: where they are, and how they multiply its activations.

A head's gate multiplies what the head passes to the output projection; a unit's gate multiplies what the unit passes to
the feed-forward output matrix. Both precede a linear map, so a gate's value folds into that map's columns. A gate on a
whole sublayer multiplies all of its parts by one number: a part's value is the product of both gates.

A gate on a dimension of the hidden states multiplies what is added to them there: the embeddings and the output of
every sublayer. Norms see only the dimensions that are not closed, as in a narrower model; `hidden.py` does this.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from model_store.model.config import layout_of
from model_store.model.layout import HIDDEN, Sublayer
from model_store.model.spec import ModelSpec
from nash import ranks
from nash.structure import gates
from nash.structure.hidden import forwards_under

# Of a kept dimension of the hidden states: a norm of the compact model counts it, the student's only if it is not 0.
_LEAST_HIDDEN = 1e-3
INITIAL_ALPHA = 3.0  # open: the gate is exactly 1 in more than four of five draws

# Values of the parts [parts] of each sublayer, by the name of its output matrix, and of the hidden states' dimensions
# [D], by the name `HIDDEN`; 0 is closed. What is not named stays as it is.
Mask = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class GateKinds:
    """What has gates. NASH: the encoder's heads and units. CoFi (arXiv 2204.00408): everything in both stacks."""

    heads: bool = True
    units: bool = True
    sublayers: bool = False
    hidden: bool = False  # the dimensions of the hidden states
    stacks: Literal["encoder", "both"] = "encoder"

    def gated(self, spec: ModelSpec) -> tuple[Sublayer, ...]:
        """The sublayers over which sparsity is counted: attention first, then feed-forward."""
        layout = layout_of(spec)
        sublayers = layout.sublayers("encoder") if self.stacks == "encoder" else layout.sublayers()
        return tuple(sorted(sublayers, key=lambda sublayer: not sublayer.has_heads))

    def on_parts(self, sublayer: Sublayer) -> bool:
        """Whether each part of the sublayer has a gate of its own."""
        return self.heads if sublayer.has_heads else self.units

    def reach(self, spec: ModelSpec) -> float:
        """The highest sparsity that these gates can reach."""
        sizes = [(s.parts * s.part_weights, self.sublayers or self.on_parts(s)) for s in self.gated(spec)]
        by_parts = sum(size for size, closes in sizes if closes) / sum(size for size, _ in sizes)
        return max(by_parts, 1 - 1 / spec.d_model) if self.hidden else by_parts  # a last dimension stays


@dataclass(frozen=True, kw_only=True)
class HardenedGates:
    """The decision after pruning: which parts stay, and the values folded into their weights."""

    values: Mask
    kept: Mask  # boolean tensors

    def mask(self) -> Mask:
        """The mask under which the uncut student computes the same as the compact model."""
        return {name: values * self.kept[name] for name, values in self.values.items()}


class Gates(nn.Module):
    """The gates' parameters and the two Lagrange multipliers of their sparsity.

    A submodule of the student, so that checkpoints hold it. `spec` is the student's.
    """

    def __init__(self, spec: ModelSpec, kinds: GateKinds) -> None:
        super().__init__()
        self.sublayers = kinds.gated(spec)
        self.part_alphas, self.sublayer_alphas = nn.ParameterDict(), nn.ParameterDict()
        self.hidden_alpha = _alpha(spec.width) if kinds.hidden else None
        for i, sublayer in enumerate(self.sublayers):
            if kinds.on_parts(sublayer):
                self.part_alphas[str(i)] = _alpha(sublayer.parts)
            if kinds.sublayers:
                self.sublayer_alphas[str(i)] = _alpha(1)
        self.multipliers_2 = nn.Parameter(torch.zeros(2))

    def alphas(self) -> list[nn.Parameter]:
        """The parameters of all gates."""
        hidden = [] if self.hidden_alpha is None else [self.hidden_alpha]
        return [*self.part_alphas.values(), *self.sublayer_alphas.values(), *hidden]

    def sparsity(self) -> Tensor:
        """The expected sparsity of the stacks that have gates, with gradients. Parts without a gate count as open.

        Every weight belongs to one part and to one dimension of the hidden states: both must be open.
        """
        open_by_name = self._by_name(gates.open_probability)
        kept = torch.stack([open_by_name[s.out].sum() * s.part_weights for s in self.sublayers]).sum()
        if HIDDEN in open_by_name:
            kept = kept * open_by_name[HIDDEN].mean()
        return 1.0 - kept / sum(s.parts * s.part_weights for s in self.sublayers)

    @torch.no_grad()
    def shares_cut(self) -> dict[str, float]:
        """The expected share that is cut of each sublayer's parts, as "stack.layer.kind", and of the hidden states."""
        open_by_name = self._by_name(gates.open_probability)
        names = {s.out: f"{s.stack}.{s.layer}.{s.kind}" for s in self.sublayers} | {HIDDEN: HIDDEN}
        return {names[name]: 1.0 - float(values.mean()) for name, values in open_by_name.items()}

    def draw(self) -> Mask:
        """Sample every gate, once per forward pass; the same in all processes of a run."""
        self._clamp()
        noise = iter(ranks.of_first([torch.rand_like(alpha) for alpha in self.alphas()]))
        return self._by_name(lambda alpha: gates.sample(alpha, next(noise)))

    def expected(self) -> Mask:
        """Every gate's value without noise."""
        return self._by_name(gates.deterministic)

    @torch.no_grad()
    def harden(self, target: float) -> HardenedGates:
        """Decide every gate so that the realised sparsity is the nearest to `target`, within one gate.

        A part is ranked by the probability that it and its sublayer are both open. A sublayer whose parts have no
        gates of their own stays or goes as a whole. Parts without any gate close last; no reachable target closes them.
        The hidden states keep at least one dimension.
        """
        self._clamp()
        open_by_name = self._by_name(gates.open_probability)
        ranks, weights = [], []
        for i, sublayer in enumerate(self.sublayers):
            if str(i) in self.part_alphas or str(i) not in self.sublayer_alphas:
                ranks.append(open_by_name[sublayer.out])
                weights.append(float(sublayer.part_weights))
            else:
                ranks.append(open_by_name[sublayer.out][:1])
                weights.append(float(sublayer.parts * sublayer.part_weights))
        decided = gates.harden(ranks, weights, target, across=open_by_name.get(HIDDEN))
        # Where parts have no gates, all share their sublayer's decision. That of the hidden states comes after these.
        kept = {s.out: k.expand(s.parts).clone() for s, k in zip(self.sublayers, decided, strict=False)}
        values = self._by_name(gates.deterministic)
        if HIDDEN in values:
            values[HIDDEN], kept[HIDDEN] = values[HIDDEN].clamp(min=_LEAST_HIDDEN), decided[-1]
        return HardenedGates(values=values, kept=kept)

    def _by_name(self, of_alpha: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """For each sublayer, by part [parts]: the function of the part's own gate times that of its sublayer's gate."""
        own = {i: of_alpha(alpha) for i, alpha in self.part_alphas.items()}
        whole = {i: of_alpha(alpha) for i, alpha in self.sublayer_alphas.items()}
        found = {}
        for number, sublayer in enumerate(self.sublayers):
            i = str(number)
            value = own[i] if i in own else self.multipliers_2.new_ones(sublayer.parts)
            found[sublayer.out] = value * whole[i] if i in whole else value
        if self.hidden_alpha is not None:
            found[HIDDEN] = of_alpha(self.hidden_alpha)
        return found

    @torch.no_grad()
    def _clamp(self) -> None:
        """Keep the optimizer out of the range where a gate's gradient vanishes."""
        for alpha in self.alphas():
            alpha.clamp_(-gates.MAX_ALPHA, gates.MAX_ALPHA)


def _alpha(width: int) -> nn.Parameter:
    return nn.Parameter(torch.full((width,), INITIAL_ALPHA))


@contextmanager
def masked(student: PreTrainedModel, sublayers: Sequence[Sublayer], mask: Mask) -> Iterator[None]:
    """Within the block, the student computes under `mask`; `sublayers` are the student's."""
    hidden = mask.get(HIDDEN)
    forwards = {} if hidden is None else forwards_under(student, hidden)
    for sublayer in sublayers:
        if sublayer.out in mask or hidden is not None:
            matrix = student.get_submodule(sublayer.out)
            forwards[matrix] = _forward_under(matrix, mask.get(sublayer.out), sublayer.columns, hidden)
    for module, forward in forwards.items():
        setattr(module, "forward", forward)  # noqa: B010 - mypy takes it for the class's
    try:
        yield
    finally:
        for module in forwards:
            delattr(module, "forward")


def _forward_under(
    matrix: nn.Module, values: Tensor | None, columns: int, hidden: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """The forward of a linear map whose inputs are multiplied by a value for each `columns` of them, without a copy.

    Its outputs are multiplied by the values of the hidden states' dimensions.

    The values multiply the matrix instead, with the same result. This is cheaper: a batch has more positions than the
    model is wide, and autograd would keep tensors as large as the activations for their product.
    """

    def forward(inputs: Tensor) -> Tensor:
        weight: Tensor = matrix.get_parameter("weight")
        bias = matrix.bias
        assert bias is None or isinstance(bias, Tensor)
        if values is not None:
            weight = weight * values.repeat_interleave(columns).to(weight.dtype)
        if hidden is not None:
            weight = weight * hidden[:, None].to(weight.dtype)
            bias = None if bias is None else bias * hidden.to(bias.dtype)
        return F.linear(inputs, weight, bias)

    return forward
