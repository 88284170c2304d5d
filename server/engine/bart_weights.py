"""The weights of a checkpoint in BART's layout: BART, mBART, Marian, Pegasus, M2M100, NLLB, dense or compact."""

from collections.abc import Iterator

import torch
from torch import Tensor

from model_store.config_fields import Heads
from model_store.spec import ModelSpec
from model_store.tensor_shapes import LEARNED_POSITIONS_START
from server.engine.checkpoint import Tensors
from server.engine.folding import fold_attention, fold_norm
from server.engine.network import (
    AttentionWeights,
    DecoderLayerWeights,
    EncoderLayerWeights,
    FeedForwardWeights,
    Linear,
    Network,
    Norm,
    StackWeights,
)
from server.engine.positions import fairseq_positions, sinusoidal_positions


def read_bart(checkpoint: Tensors, spec: ModelSpec, *, longest: int) -> Network:
    """The network of a checked checkpoint; layers and output are read when they are wanted.

    `longest`: how many positions to compute where any number can be.
    """
    return _Reader(checkpoint, spec, longest).network()


class _Reader:
    def __init__(self, checkpoint: Tensors, spec: ModelSpec, longest: int) -> None:
        self._checkpoint = checkpoint
        self._spec = spec
        self._longest = longest

    def network(self) -> Network:
        spec = self._spec
        source_VD = self._embedding("encoder")
        target_VD = self._embedding("decoder")
        if target_VD.shape == source_VD.shape and torch.equal(target_VD, source_VD):
            target_VD = source_VD
        scale = spec.d_model**0.5 if spec.scale_embedding else 1.0
        return Network(
            norm="layer",
            norm_eps=spec.layer_norm_eps,
            norm_first=spec.facts.norm_first,
            activation=spec.activation,
            d_model=spec.d_model,
            head_dim=spec.head_dim,
            vocab_size=spec.target_vocab_size,
            relative_max_distance=0,
            encoder_heads=tuple(layer.heads for layer in spec.encoder),
            self_heads=tuple(layer.self_heads for layer in spec.decoder),
            cross_heads=tuple(layer.cross_heads for layer in spec.decoder),
            unplaced_token=spec.pad_id if spec.facts.positions == "endless" else None,
            encoder=StackWeights(
                embedding_VD=source_VD,
                embedding_scale=scale,
                positions_PD=self._positions("encoder"),
                position_bias_KH=None,
                embedding_norm=self._norm_of("encoder.layernorm_embedding") if spec.facts.embeds_norm else None,
                layers=self._encoder_layers(),
            ),
            decoder=StackWeights(
                embedding_VD=target_VD,
                embedding_scale=scale,
                positions_PD=self._positions("decoder"),
                position_bias_KH=None,
                embedding_norm=self._norm_of("decoder.layernorm_embedding") if spec.facts.embeds_norm else None,
                layers=self._decoder_layers(),
            ),
            output=self._output,
        )

    def _encoder_layers(self) -> Iterator[EncoderLayerWeights]:
        for i, layer in enumerate(self._spec.encoder):
            prefix = f"encoder.layers.{i}"
            yield EncoderLayerWeights(
                attention=self._attention(f"{prefix}.self_attn", layer.heads),
                ffn=self._feed_forward(prefix, layer.ffn),
            )

    def _decoder_layers(self) -> Iterator[DecoderLayerWeights]:
        encoded = self._norm_of("encoder.layer_norm") if self._spec.facts.norm_first else None
        for i, layer in enumerate(self._spec.decoder):
            prefix = f"decoder.layers.{i}"
            yield DecoderLayerWeights(
                attention=self._attention(f"{prefix}.self_attn", layer.self_heads),
                cross=self._attention(f"{prefix}.encoder_attn", layer.cross_heads, crosses=True, encoded=encoded),
                ffn=self._feed_forward(prefix, layer.ffn),
            )

    def _attention(
        self, prefix: str, heads: Heads, *, crosses: bool = False, encoded: Norm | None = None
    ) -> AttentionWeights:
        """`encoded`: the norm behind the encoder, where cross-attention reads its output."""
        before, after = self._norms(f"{prefix}_layer_norm", absent=not heads)
        bias_D = self._read(f"{prefix}.out_proj.bias")
        if not heads:
            nothing = Linear(weight_OI=bias_D.new_zeros(0, self._spec.d_model), bias_O=None)
            return AttentionWeights(
                heads=(),
                query=nothing,
                key=nothing,
                value=nothing,
                out=Linear(weight_OI=nothing.weight_OI.t(), bias_O=bias_D),
                after=after,
            )
        keys_norm = encoded if crosses else before
        return fold_attention(
            heads=heads,
            query=fold_norm(self._linear(f"{prefix}.q_proj"), before),
            key=fold_norm(self._linear(f"{prefix}.k_proj"), keys_norm),
            value=fold_norm(self._linear(f"{prefix}.v_proj"), keys_norm),
            out=Linear(weight_OI=self._read(f"{prefix}.out_proj.weight"), bias_O=bias_D),
            after=after,
            scale=self._spec.head_dim**-0.5,
        )

    def _feed_forward(self, prefix: str, units: int) -> FeedForwardWeights:
        before, after = self._norms(f"{prefix}.final_layer_norm", absent=not units)
        bias_D = self._read(f"{prefix}.fc2.bias")
        if not units:
            nothing = bias_D.new_zeros(0, self._spec.d_model)
            into = Linear(weight_OI=nothing, bias_O=None)
            return FeedForwardWeights(
                gate=None, into=into, out=Linear(weight_OI=nothing.t(), bias_O=bias_D), after=after
            )
        return FeedForwardWeights(
            gate=None,
            into=fold_norm(self._linear(f"{prefix}.fc1"), before),
            out=Linear(weight_OI=self._read(f"{prefix}.fc2.weight"), bias_O=bias_D),
            after=after,
        )

    def _norms(self, name: str, *, absent: bool) -> tuple[Norm | None, Norm | None]:
        """A sublayer's norm as the one before or the one after it."""
        if not self._spec.facts.norm_first:
            return None, self._norm_of(name)
        return (None if absent else self._norm_of(name)), None

    def _embedding(self, stack: str) -> Tensor:
        own = f"{stack}.embed_tokens.weight"
        return self._read(own if f"model.{own}" in self._checkpoint else "shared.weight")

    def _positions(self, stack: str) -> Tensor:
        spec, name = self._spec, f"{stack}.embed_positions.weight"
        if spec.max_positions is None:
            # Row 0 belongs to padding's successor: fairseq numbers tokens from there.
            return self._checkpoint.place(fairseq_positions(spec.pad_id + 1, self._longest, spec.d_model))
        if spec.facts.positions == "learned":
            return self._read(name)[LEARNED_POSITIONS_START:].clone()
        if f"model.{name}" in self._checkpoint:
            return self._read(name)
        return self._checkpoint.place(sinusoidal_positions(spec.max_positions, spec.d_model))

    def _output(self) -> Linear:
        if "lm_head.weight" in self._checkpoint:
            weight_VD = self._checkpoint.read("lm_head.weight")
        else:
            weight_VD = self._embedding("decoder")
        bias_V = None
        if "final_logits_bias" in self._checkpoint:
            bias_V = self._checkpoint.read("final_logits_bias").view(-1)
        norm = self._norm_of("decoder.layer_norm") if self._spec.facts.norm_first else None
        return fold_norm(Linear(weight_OI=weight_VD, bias_O=bias_V), norm)

    def _linear(self, name: str) -> Linear:
        return Linear(weight_OI=self._read(f"{name}.weight"), bias_O=self._read(f"{name}.bias"))

    def _norm_of(self, name: str) -> Norm:
        return Norm(gain_D=self._read(f"{name}.weight"), shift_D=self._read(f"{name}.bias"))

    def _read(self, name: str) -> Tensor:
        return self._checkpoint.read(f"model.{name}")
