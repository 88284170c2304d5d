"""The names in a checkpoint layout: the keys of `config.json`, the tensors, and the sublayers by module name.

Each layout is one file (`t5.py`, `umt5.py`, `bart.py`), and no other code branches on the layout: the engine reads
weights, and the pruner gates, cuts, exports and compares, by the names that the layout gives.

A sublayer without heads or units leaves the residual unchanged, except for what remains of it: the bias of its output
matrix, if there is one, and its norm, if that comes last.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from model_store.model import config_fields as fields
from model_store.model.families import Family
from model_store.model.spec import ModelSpec

Stack = Literal["encoder", "decoder"]
Kind = Literal["self_attention", "cross_attention", "feed_forward"]
Shapes = Iterator[tuple[str, tuple[int, ...]]]

# In the place of a sublayer's output matrix where kept parts are named: the dimensions of the hidden states.
HIDDEN = "hidden"

STACKS: tuple[Stack, ...] = ("encoder", "decoder")


@dataclass(frozen=True, kw_only=True)
class SublayerNames:
    """The modules of one sublayer."""

    inputs: tuple[str, ...]  # query, key and value; or the feed-forward's gate, if any, and its first matrix
    out: str
    norm: str
    bias_table: str | None = None  # of relative positions, if a self-attention has its own


@dataclass(frozen=True, kw_only=True)
class Sublayer:
    """An attention or a feed-forward, divided into parts of equal size: heads or units.

    Part p owns rows p * columns to (p + 1) * columns of every input matrix (and of its bias), and the same columns of
    the output matrix, whose bias belongs to no part.
    """

    stack: Stack
    layer: int  # its number in the current stack
    kind: Kind
    names: SublayerNames
    numbers: Sequence[int]  # the remaining heads, by their numbers in the dense model; units are numbered from 0
    columns: int  # columns of the output matrix per part: the head's width, or 1
    part_weights: int  # weights of one part in all matrices, without biases

    @property
    def inputs(self) -> tuple[str, ...]:
        """Module names of the input matrices."""
        return self.names.inputs

    @property
    def out(self) -> str:
        """Module name of the output matrix; also the sublayer's key in masks."""
        return self.names.out

    @property
    def norm(self) -> str:
        """Module name of the norm."""
        return self.names.norm

    @property
    def bias_table(self) -> str | None:
        """Module name of its own table of relative positions, if any. It covers all of the dense model's heads."""
        return self.names.bias_table

    @property
    def parts(self) -> int:
        """How many heads or units remain."""
        return len(self.numbers)

    @property
    def has_heads(self) -> bool:
        """Whether the parts are attention heads; otherwise they are feed-forward units."""
        return self.kind != "feed_forward"


class Layout(ABC):
    """The names of one layout, for a model of the shape `spec`.

    The tensors of a module `Name` are `Name.weight` and, if the layout has biases, `Name.bias`.
    """

    layers_keys: ClassVar[Mapping[Stack, str]]  # the config.json keys that hold a stack's number of layers
    biases: ClassVar[bool]  # whether matrices and norms have biases; norms with a bias also subtract the mean
    scaled_scores: ClassVar[bool]  # whether attention multiplies its scores by head_dim^-0.5
    norm_eps_key: ClassVar[str | None]  # the config.json key of what norms add to the mean square, if there is one
    output: ClassVar[str]  # the output matrix's module, if the checkpoint has its own
    logits_bias: ClassVar[str | None]  # the tensor's name
    first_position: ClassVar[int] = 0  # the row of position 0 in a table of learned positions

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @classmethod
    @abstractmethod
    def widths(cls, config: Mapping[str, Any], family: Family) -> dict[str, Any]:
        """All fields of a spec except those of layers and special tokens, read from a parsed `config.json`.

        Raises:
            UnsupportedModelError: a field is missing or invalid.
        """

    @classmethod
    def layer_counts(cls, config: Mapping[str, Any]) -> tuple[int, int]:
        """The numbers of encoder and decoder layers, read from a parsed `config.json`.

        Raises:
            UnsupportedModelError: one is missing or invalid.
        """
        encoder, decoder = (
            fields.count(config, cls.layers_keys[stack], most=fields.MOST_LAYERS_OR_HEADS) for stack in STACKS
        )
        return encoder, decoder

    @property
    def counts(self) -> dict[str, int]:
        """The keys of `config.json` that give the numbers of layers, with their values."""
        return {
            self.layers_keys["encoder"]: len(self.spec.encoder),
            self.layers_keys["decoder"]: len(self.spec.decoder),
        }

    def output_config(self, *, own: bool) -> dict[str, bool]:
        """The keys of a stock `config.json` that say whether the checkpoint has its own output matrix."""
        del own
        return {}

    @abstractmethod
    def layers(self, stack: Stack) -> str:
        """The module that holds a stack's layers by number."""

    @abstractmethod
    def sublayer(self, stack: Stack, layer: int, kind: Kind) -> SublayerNames:
        """The modules of one sublayer."""

    @abstractmethod
    def embeddings(self, stack: Stack) -> tuple[str, ...]:
        """The modules that may hold a stack's embedding; the first one found in a checkpoint is used."""

    @abstractmethod
    def final_norm(self, stack: Stack) -> str:
        """The norm after a stack whose norms come first."""

    def embedding_norm(self, stack: Stack) -> str:
        """The norm after the embedding, in families that have one."""
        raise NotImplementedError(f"no family of this layout has a norm behind the {stack}'s embedding")

    def positions(self, stack: Stack) -> str:
        """The table of positions, in families that have one."""
        raise NotImplementedError(f"no family of this layout has a table of the {stack}'s positions")

    def bias_table(self, stack: Stack) -> str | None:
        """The table of relative positions that a stack's layers share. It covers all of the dense model's heads."""
        del stack
        return None

    @property
    def stack_tensors(self) -> frozenset[str]:
        """Tensors named under one layer that belong to its whole stack."""
        tables = (self.bias_table(stack) for stack in STACKS)
        return frozenset(f"{table}.weight" for table in tables if table is not None)

    @abstractmethod
    def stack_shapes(self) -> Shapes:
        """Name and shape of every required tensor that belongs to no sublayer."""

    @abstractmethod
    def optional_shapes(self) -> Shapes:
        """Name and shape of every further tensor that a checkpoint of this shape may contain."""

    def shapes(self) -> Shapes:
        """Name and shape of every tensor that a checkpoint of this shape must contain."""
        yield from self.stack_shapes()
        for sublayer in self.sublayers():
            width = sublayer.parts * sublayer.columns
            if width:
                for matrix in sublayer.inputs:
                    yield f"{matrix}.weight", (width, self.spec.width)
                    if self.biases:
                        yield f"{matrix}.bias", (width,)
                yield f"{sublayer.out}.weight", (self.spec.width, width)
                if sublayer.bias_table is not None:
                    yield f"{sublayer.bias_table}.weight", (self.spec.relative_buckets, self.spec.num_heads)
            if self.biases:
                yield f"{sublayer.out}.bias", (self.spec.width,)
            if width or not self.spec.facts.norm_first:
                yield from self.norm_shapes(sublayer.norm)

    def norm_shapes(self, name: str) -> Shapes:
        """The tensors of one norm."""
        yield f"{name}.weight", (self.spec.width,)
        if self.biases:
            yield f"{name}.bias", (self.spec.width,)

    def sublayers(self, *stacks: Stack) -> tuple[Sublayer, ...]:
        """The sublayers of a model of this shape, or only of `stacks`, in the order in which the layers run."""
        return tuple(
            Sublayer(
                stack=stack,
                layer=layer,
                kind=kind,
                names=self.sublayer(stack, layer, kind),
                numbers=numbers,
                columns=1 if kind == "feed_forward" else self.spec.head_dim,
                part_weights=self.spec.unit_weights if kind == "feed_forward" else self.spec.head_weights,
            )
            for stack, layer, kind, numbers in _parts(self.spec)
            if not stacks or stack in stacks
        )


def _parts(spec: ModelSpec) -> Iterator[tuple[Stack, int, Kind, Sequence[int]]]:
    """Every sublayer in the order in which the layers run, with the numbers of its parts."""
    for i, layer in enumerate(spec.encoder):
        yield "encoder", i, "self_attention", layer.heads
        yield "encoder", i, "feed_forward", range(layer.ffn)
    for i, decoder_layer in enumerate(spec.decoder):
        yield "decoder", i, "self_attention", decoder_layer.self_heads
        yield "decoder", i, "cross_attention", decoder_layer.cross_heads
        yield "decoder", i, "feed_forward", range(decoder_layer.ffn)
