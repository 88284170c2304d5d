"""From a model folder to the neutral weights that every backend takes.

One reader serves all layouts: the model's `Layout` says where each matrix is, its family says which parts exist.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from model_store.model.config import layout_of
from model_store.model.config_fields import Heads
from model_store.model.layout import Stack, SublayerNames
from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from server.engine.weights.checkpoint import Tensors, open_checkpoint
from server.engine.weights.folding import fold_attention, fold_norm, scaled
from server.engine.weights.int4 import map_layers, open_int4
from server.engine.weights.network import (
    AttentionWeights,
    DecoderLayerWeights,
    EncoderLayerWeights,
    FeedForwardWeights,
    Layer,
    Linear,
    Network,
    Norm,
    StackWeights,
)
from server.engine.weights.positions import fairseq_positions, sinusoidal_positions


@contextmanager
def open_network(
    model: Model, *, dtype: torch.dtype, device: torch.device, longest: int, int4: bool = False
) -> Iterator[Network]:
    """A model's weights, readable within the context.

    `dtype`: what the model will compute in; weights come in at least float32, because they are folded in it.
    `longest`: how many positions to compute if their number is unlimited.
    `int4`: use the layers' matrices that were calibrated to four bits.

    Raises:
        LoadError: a file is missing or not a safetensors file, or its tensors do not match its shape.
    """
    folded_dtype = torch.promote_types(dtype, torch.float32)
    with open_checkpoint(model, dtype=folded_dtype, device=device) as checkpoint:
        network = read_network(checkpoint, model.spec, longest=longest)
        if not int4:
            yield network
            return
        with open_int4(model) as calibrated:
            yield map_layers(network, calibrated)


def read_network(tensors: Tensors, spec: ModelSpec, *, longest: int) -> Network:
    """The network of a model with the shape `spec`; layers and output are read from its tensors on demand.

    `longest`: how many positions to compute if their number is unlimited.
    """
    return _Reader(tensors, spec, longest).network()


class _Reader:
    def __init__(self, tensors: Tensors, spec: ModelSpec, longest: int) -> None:
        self._tensors = tensors
        self._spec = spec
        self._layout = layout_of(spec)
        self._longest = longest

    def network(self) -> Network:
        spec = self._spec
        source_VD = self._read(self._embedding("encoder"))
        target_VD = source_VD
        if self._embedding("decoder") != self._embedding("encoder"):
            target_VD = self._read(self._embedding("decoder"))
            if target_VD.shape == source_VD.shape and torch.equal(target_VD, source_VD):
                target_VD = source_VD
        return Network(
            norm="layer" if self._layout.biases else "rms",
            norm_eps=spec.layer_norm_eps,
            norm_first=spec.facts.norm_first,
            activation=spec.activation,
            width=spec.width,
            head_dim=spec.head_dim,
            vocab_size=spec.target_vocab_size,
            relative_max_distance=spec.relative_max_distance,
            encoder_heads=tuple(layer.heads for layer in spec.encoder),
            self_heads=tuple(layer.self_heads for layer in spec.decoder),
            cross_heads=tuple(layer.cross_heads for layer in spec.decoder),
            unplaced_token=spec.pad_id if spec.facts.positions == "endless" else None,
            encoder=self._stack("encoder", source_VD, self._encoder_layers()),
            decoder=self._stack("decoder", target_VD, self._decoder_layers()),
            output=self._output,
        )

    def _stack(self, stack: Stack, embedding_VD: Tensor, layers: Iterator[Layer]) -> StackWeights[Layer]:
        spec, layout = self._spec, self._layout
        return StackWeights(
            embedding_VD=embedding_VD,
            embedding_scale=spec.d_model**0.5 if spec.scale_embedding else 1.0,
            positions_PD=self._positions(stack),
            position_biases_KH=self._position_biases(stack),
            embedding_norm=self._norm(layout.embedding_norm(stack)) if spec.facts.embeds_norm else None,
            layers=layers,
        )

    def _encoder_layers(self) -> Iterator[EncoderLayerWeights]:
        names = self._layout.sublayer
        for i, layer in enumerate(self._spec.encoder):
            yield EncoderLayerWeights(
                attention=self._attention(names("encoder", i, "self_attention"), layer.heads),
                ffn=self._feed_forward(names("encoder", i, "feed_forward"), layer.ffn),
            )

    def _decoder_layers(self) -> Iterator[DecoderLayerWeights]:
        names = self._layout.sublayer
        for i, layer in enumerate(self._spec.decoder):
            yield DecoderLayerWeights(
                attention=self._attention(names("decoder", i, "self_attention"), layer.self_heads),
                cross=self._attention(names("decoder", i, "cross_attention"), layer.cross_heads, crosses=True),
                ffn=self._feed_forward(names("decoder", i, "feed_forward"), layer.ffn),
            )

    def _attention(self, names: SublayerNames, heads: Heads, *, crosses: bool = False) -> AttentionWeights | None:
        """Cross-attention computes keys and values from the output of the encoder's final norm."""
        if not heads and not self._layout.biases:
            return None
        before, after = self._norms(names.norm, absent=not heads)
        if not heads:
            nothing, out = self._bias_alone(names.out)
            return AttentionWeights(heads=(), query=nothing, key=nothing, value=nothing, out=out, after=after)
        keys_norm = self._final_norm("encoder") if crosses else before
        query, key, value = (self._linear(name) for name in names.inputs)
        return fold_attention(
            heads=heads,
            query=fold_norm(query, before),
            key=fold_norm(key, keys_norm),
            value=fold_norm(value, keys_norm),
            out=self._linear(names.out),
            after=after,
            scale=self._spec.head_dim**-0.5 if self._layout.scaled_scores else 1.0,
        )

    def _feed_forward(self, names: SublayerNames, units: int) -> FeedForwardWeights | None:
        if not units and not self._layout.biases:
            return None
        before, after = self._norms(names.norm, absent=not units)
        if not units:
            nothing, out = self._bias_alone(names.out)
            return FeedForwardWeights(gate=None, into=nothing, out=out, after=after)
        *gate, into = (fold_norm(self._linear(name), before) for name in names.inputs)
        return FeedForwardWeights(gate=gate[0] if gate else None, into=into, out=self._linear(names.out), after=after)

    def _bias_alone(self, name: str) -> tuple[Linear, Linear]:
        """An empty map [0, D], and a map from nothing [D, 0] that adds its bias."""
        bias_D = self._read(f"{name}.bias")
        from_nothing_D0 = bias_D.new_zeros(self._spec.width, 0)
        nothing = Linear(weight_OI=from_nothing_D0.t(), bias_O=None)
        return nothing, Linear(weight_OI=from_nothing_D0, bias_O=bias_D)

    def _norms(self, name: str, *, absent: bool) -> tuple[Norm | None, Norm | None]:
        """A sublayer's norms: the one before it and the one after it, of which at most one is present."""
        if not self._spec.facts.norm_first:
            return None, self._norm(name)
        return (None if absent else self._norm(name)), None

    def _final_norm(self, stack: Stack) -> Norm | None:
        return self._norm(self._layout.final_norm(stack)) if self._spec.facts.norm_first else None

    def _embedding(self, stack: Stack) -> str:
        names = [f"{name}.weight" for name in self._layout.embeddings(stack)]
        return next(name for name in names if name in self._tensors)

    def _position_biases(self, stack: Stack) -> tuple[Tensor | None, ...]:
        shared = self._layout.bias_table(stack)
        shared_KH = None if shared is None else self._read(f"{shared}.weight")
        attentions = (s for s in self._layout.sublayers(stack) if s.kind == "self_attention")
        own = (attention.bias_table if attention.parts else None for attention in attentions)
        return tuple(shared_KH if name is None else self._read(f"{name}.weight") for name in own)

    def _positions(self, stack: Stack) -> Tensor | None:
        spec = self._spec
        if spec.facts.positions == "relative":
            return None
        if spec.facts.positions == "endless":
            # Row 0 belongs to padding's successor: fairseq numbers positions from there.
            return self._tensors.place(
                self._kept_dimensions(fairseq_positions(spec.pad_id + 1, self._longest, spec.d_model))
            )
        name = f"{self._layout.positions(stack)}.weight"
        if spec.facts.positions == "learned":
            return self._read(name)[self._layout.first_position :].clone()
        if name in self._tensors:
            return self._kept_dimensions(self._read(name))
        assert spec.max_positions is not None, "a table of positions has a length"
        return self._tensors.place(self._kept_dimensions(sinusoidal_positions(spec.max_positions, spec.d_model)))

    def _kept_dimensions(self, positions_PD: Tensor) -> Tensor:
        return positions_PD if self._spec.width == self._spec.d_model else positions_PD[:, list(self._spec.hidden)]

    def _output(self) -> Linear:
        name = f"{self._layout.output}.weight"
        weight_VD = self._read(name if name in self._tensors else self._embedding("decoder"))
        bias_V, logits_bias = None, self._layout.logits_bias
        if logits_bias is not None and logits_bias in self._tensors:
            bias_V = self._read(logits_bias).view(-1)
        output = fold_norm(Linear(weight_OI=weight_VD, bias_O=bias_V), self._final_norm("decoder"))
        return scaled(output, self._spec.d_model**-0.5 if self._spec.scale_logits else 1.0)

    def _linear(self, name: str) -> Linear:
        bias_O = self._read(f"{name}.bias") if self._layout.biases else None
        return Linear(weight_OI=self._read(f"{name}.weight"), bias_O=bias_O)

    def _norm(self, name: str) -> Norm:
        shift_D = self._read(f"{name}.bias") if self._layout.biases else None
        return Norm(gain_D=self._read(f"{name}.weight"), shift_D=shift_D)

    def _read(self, name: str) -> Tensor:
        return self._tensors.read(name)
