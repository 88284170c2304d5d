"""The weights of a T5 checkpoint: T5, v1.1, FLAN, mT5, ByT5, dense or compact."""

from collections.abc import Iterator

from model_store.config_fields import Heads
from model_store.spec import ModelSpec
from server.engine.checkpoint import Tensors
from server.engine.folding import fold_attention, fold_norm, scaled
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


def read_t5(checkpoint: Tensors, spec: ModelSpec) -> Network:
    """The network of a checked checkpoint; layers and output are read when they are wanted."""
    return _Reader(checkpoint, spec).network()


class _Reader:
    def __init__(self, checkpoint: Tensors, spec: ModelSpec) -> None:
        self._checkpoint = checkpoint
        self._spec = spec

    def network(self) -> Network:
        spec = self._spec
        embedding_VD = self._checkpoint.read("shared.weight")
        return Network(
            norm="rms",
            norm_eps=spec.layer_norm_eps,
            norm_first=True,
            activation=spec.activation,
            d_model=spec.d_model,
            head_dim=spec.head_dim,
            vocab_size=spec.vocab_size,
            relative_max_distance=spec.relative_max_distance,
            encoder_heads=tuple(layer.heads for layer in spec.encoder),
            self_heads=tuple(layer.self_heads for layer in spec.decoder),
            cross_heads=tuple(layer.cross_heads for layer in spec.decoder),
            unplaced_token=None,
            encoder=StackWeights(
                embedding_VD=embedding_VD,
                embedding_scale=1.0,
                positions_PD=None,
                position_bias_KH=self._checkpoint.read(_bias_name("encoder")),
                embedding_norm=None,
                layers=self._encoder_layers(),
            ),
            decoder=StackWeights(
                embedding_VD=embedding_VD,
                embedding_scale=1.0,
                positions_PD=None,
                position_bias_KH=self._checkpoint.read(_bias_name("decoder")),
                embedding_norm=None,
                layers=self._decoder_layers(),
            ),
            output=self._output,
        )

    def _encoder_layers(self) -> Iterator[EncoderLayerWeights]:
        for i, layer in enumerate(self._spec.encoder):
            block = f"encoder.block.{i}.layer"
            yield EncoderLayerWeights(
                attention=self._attention(f"{block}.0", "SelfAttention", layer.heads),
                ffn=self._feed_forward(f"{block}.1", layer.ffn),
            )

    def _decoder_layers(self) -> Iterator[DecoderLayerWeights]:
        encoded = self._norm("encoder.final_layer_norm")
        for i, layer in enumerate(self._spec.decoder):
            block = f"decoder.block.{i}.layer"
            yield DecoderLayerWeights(
                attention=self._attention(f"{block}.0", "SelfAttention", layer.self_heads),
                cross=self._attention(f"{block}.1", "EncDecAttention", layer.cross_heads, keys_norm=encoded),
                ffn=self._feed_forward(f"{block}.2", layer.ffn),
            )

    def _attention(
        self, prefix: str, kind: str, heads: Heads, *, keys_norm: Norm | None = None
    ) -> AttentionWeights | None:
        """`keys_norm`: what keys and values are normed with, where it is not what queries are."""
        if not heads:
            return None
        norm = self._norm(f"{prefix}.layer_norm")
        query, key, value, out = (self._linear(f"{prefix}.{kind}.{name}") for name in "qkvo")
        return fold_attention(
            heads=heads,
            query=fold_norm(query, norm),
            key=fold_norm(key, keys_norm or norm),
            value=fold_norm(value, keys_norm or norm),
            out=out,
            after=None,
            scale=1.0,
        )

    def _feed_forward(self, prefix: str, units: int) -> FeedForwardWeights | None:
        if units == 0:
            return None
        norm = self._norm(f"{prefix}.layer_norm")
        into, gate = ("wi_1", "wi_0") if self._spec.gated_ffn else ("wi", None)
        return FeedForwardWeights(
            gate=fold_norm(self._linear(f"{prefix}.DenseReluDense.{gate}"), norm) if gate else None,
            into=fold_norm(self._linear(f"{prefix}.DenseReluDense.{into}"), norm),
            out=self._linear(f"{prefix}.DenseReluDense.wo"),
            after=None,
        )

    def _output(self) -> Linear:
        name = "lm_head" if "lm_head.weight" in self._checkpoint else "shared"
        scale = self._spec.d_model**-0.5 if self._spec.scale_logits else 1.0
        return scaled(fold_norm(self._linear(name), self._norm("decoder.final_layer_norm")), scale)

    def _linear(self, name: str) -> Linear:
        return Linear(weight_OI=self._checkpoint.read(f"{name}.weight"), bias_O=None)

    def _norm(self, name: str) -> Norm:
        return Norm(gain_D=self._checkpoint.read(f"{name}.weight"), shift_D=None)


def _bias_name(stack: str) -> str:
    return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
