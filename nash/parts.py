"""Where the parts of a model sit: the attention heads and feed-forward units of every layer, by module name.

This is the only place that knows how the two layouts of transformers, T5's and BART's, name things. Gates, compaction,
export and whatever else works on single parts takes the names from here and has no branch on a family.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from model_store.spec import DecoderLayerSpec, EncoderLayerSpec, ModelSpec, dense_of

Stack = Literal["encoder", "decoder"]
Kind = Literal["self_attention", "cross_attention", "feed_forward"]


@dataclass(frozen=True, kw_only=True)
class Sublayer:
    """An attention or a feed-forward: parts of equal size side by side between its input matrices and its output.

    Part p holds the rows p * columns to (p + 1) * columns of every input matrix (and of its bias), and the same columns
    of the output matrix, whose bias belongs to no part.
    """

    stack: Stack
    layer: int  # its number in the stack as it is
    kind: Kind
    inputs: tuple[str, ...]  # module names: query, key and value, or the feed-forward's first matrices
    out: str  # module name; also the sublayer's key in masks
    norm: str  # module name
    numbers: tuple[int, ...]  # the heads that are there, as the dense model counts them; units just count up
    columns: int  # of the output matrix that one part has: the head's width, or 1
    part_weights: int  # weights that one part holds in all matrices, biases not counted

    @property
    def parts(self) -> int:
        """How many heads or units are there."""
        return len(self.numbers)

    @property
    def has_heads(self) -> bool:
        """Whether the parts are attention heads; else they are feed-forward units."""
        return self.kind != "feed_forward"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """All sublayers of a model, and what its configuration and its tensors call its layers.

    `sublayers` are in the order in which the layers run.
    """

    sublayers: tuple[Sublayer, ...]
    encoder_layers_key: str  # of config.json: the number of layers
    decoder_layers_key: str
    decoder_prefix: str  # of the tensors of decoder layer i: the prefix, then "i."
    stack_tensors: frozenset[str]  # tensors with a layer's name that belong to the whole stack

    def of(self, stack: Stack) -> tuple[Sublayer, ...]:
        """The sublayers of one stack."""
        return tuple(sublayer for sublayer in self.sublayers if sublayer.stack == stack)


def parts_of(spec: ModelSpec) -> Parts:
    """The parts of a model of this shape, dense, shortened or compact."""
    return _t5_parts(spec) if spec.facts.layout == "t5" else _bart_parts(spec)


def shortened(spec: ModelSpec, kept_layers: tuple[int, ...]) -> ModelSpec:
    """The shape of the dense model of which only these decoder layers are left, every layer whole."""
    whole = dense_of(spec)
    encoder = whole.encoder[: len(spec.encoder)]
    return replace(whole, encoder=encoder, decoder=tuple(whole.decoder[i] for i in kept_layers))


def layers_of(model: PreTrainedModel, stack: Stack) -> nn.ModuleList:
    """The layers of one stack of a model in transformers, in the order in which they run."""
    module = model.get_encoder() if stack == "encoder" else model.get_decoder()
    layers: nn.ModuleList = next(child for child in module.children() if isinstance(child, nn.ModuleList))
    return layers


def _t5_parts(spec: ModelSpec) -> Parts:
    ffn_inputs = ("wi_0", "wi_1") if spec.gated_ffn else ("wi",)

    def attention(place: str, module: str) -> tuple[tuple[str, ...], str, str]:
        return tuple(f"{place}.{module}.{name}" for name in "qkv"), f"{place}.{module}.o", f"{place}.layer_norm"

    def feed_forward(place: str) -> tuple[tuple[str, ...], str, str]:
        inputs = tuple(f"{place}.DenseReluDense.{name}" for name in ffn_inputs)
        return inputs, f"{place}.DenseReluDense.wo", f"{place}.layer_norm"

    sublayers: list[Sublayer] = []
    for stack, i, kind, numbers in _numbers(spec):
        place = f"{stack}.block.{i}.layer"
        if kind == "self_attention":
            names = attention(f"{place}.0", "SelfAttention")
        elif kind == "cross_attention":
            names = attention(f"{place}.1", "EncDecAttention")
        else:
            names = feed_forward(f"{place}.{1 if stack == 'encoder' else 2}")
        sublayers.append(_sublayer(spec, stack, i, kind, numbers, names))
    return Parts(
        sublayers=tuple(sublayers),
        encoder_layers_key="num_layers",
        decoder_layers_key="num_decoder_layers",
        decoder_prefix="decoder.block.",
        stack_tensors=frozenset(
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight" for stack in ("encoder", "decoder")
        ),
    )


def _bart_parts(spec: ModelSpec) -> Parts:
    def attention(place: str, module: str) -> tuple[tuple[str, ...], str, str]:
        inputs = tuple(f"{place}.{module}.{name}_proj" for name in "qkv")
        return inputs, f"{place}.{module}.out_proj", f"{place}.{module}_layer_norm"

    sublayers: list[Sublayer] = []
    for stack, i, kind, numbers in _numbers(spec):
        place = f"model.{stack}.layers.{i}"
        if kind == "feed_forward":
            names: tuple[tuple[str, ...], str, str] = ((f"{place}.fc1",), f"{place}.fc2", f"{place}.final_layer_norm")
        else:
            names = attention(place, "self_attn" if kind == "self_attention" else "encoder_attn")
        sublayers.append(_sublayer(spec, stack, i, kind, numbers, names))
    return Parts(
        sublayers=tuple(sublayers),
        encoder_layers_key="encoder_layers",
        decoder_layers_key="decoder_layers",
        decoder_prefix="model.decoder.layers.",
        stack_tensors=frozenset(),
    )


def _numbers(spec: ModelSpec) -> Iterator[tuple[Stack, int, Kind, tuple[int, ...]]]:
    """Every sublayer in the order in which the layers run, with the numbers of its parts."""
    for i, layer in enumerate(spec.encoder):
        yield "encoder", i, "self_attention", layer.heads
        yield "encoder", i, "feed_forward", tuple(range(layer.ffn))
    for i, decoder_layer in enumerate(spec.decoder):
        yield "decoder", i, "self_attention", decoder_layer.self_heads
        yield "decoder", i, "cross_attention", decoder_layer.cross_heads
        yield "decoder", i, "feed_forward", tuple(range(decoder_layer.ffn))


def _sublayer(
    spec: ModelSpec,
    stack: Stack,
    layer: int,
    kind: Kind,
    numbers: tuple[int, ...],
    names: tuple[tuple[str, ...], str, str],
) -> Sublayer:
    heads = kind != "feed_forward"
    inputs, out, norm = names
    return Sublayer(
        stack=stack,
        layer=layer,
        kind=kind,
        inputs=inputs,
        out=out,
        norm=norm,
        numbers=numbers,
        columns=spec.head_dim if heads else 1,
        part_weights=spec.head_weights if heads else spec.unit_weights,
    )


def with_kept(spec: ModelSpec, kept: dict[str, tuple[int, ...]]) -> ModelSpec:
    """The shape that is left where the sublayers named in `kept`, by their `out`, hold these parts alone."""
    left = {(s.stack, s.layer, s.kind): kept[s.out] for s in parts_of(spec).sublayers if s.out in kept}

    def heads(stack: Stack, i: int, kind: Kind, before: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(before[p] for p in left.get((stack, i, kind), range(len(before))))

    def units(stack: Stack, i: int, before: int) -> int:
        return len(left.get((stack, i, "feed_forward"), range(before)))

    return replace(
        spec,
        encoder=tuple(
            EncoderLayerSpec(
                heads=heads("encoder", i, "self_attention", layer.heads), ffn=units("encoder", i, layer.ffn)
            )
            for i, layer in enumerate(spec.encoder)
        ),
        decoder=tuple(
            DecoderLayerSpec(
                self_heads=heads("decoder", i, "self_attention", layer.self_heads),
                cross_heads=heads("decoder", i, "cross_attention", layer.cross_heads),
                ffn=units("decoder", i, layer.ffn),
                origin=layer.origin,
            )
            for i, layer in enumerate(spec.decoder)
        ),
    )
