"""From neutral weights to a PyTorch model: fused, converted and laid out.

Axes: D model width, HE heads times head width, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.pytorch.matrices.bitsandbytes_matrix import BYTES_PER_WEIGHT, quantize
from server.engine.pytorch.matrices.int8_matrix import Int8Matrix, RoundedRowsMatrix
from server.engine.pytorch.matrices.matrix import DenseMatrix, Matrix, WideMatrix
from server.engine.pytorch.model import (
    BiasAndNorm,
    CrossAttention,
    Decoder,
    DecoderLayer,
    Embedding,
    Encoder,
    EncoderLayer,
    FeedForward,
    SelfAttention,
)
from server.engine.pytorch.norm import FusedRMSNorm, LayerNorm, NoNorm, PlainRMSNorm, RowNorm
from server.engine.pytorch.position_bias import DecoderBias, EncoderBias
from server.engine.weights.folding import by_head
from server.engine.weights.network import (
    AttentionWeights,
    DecoderLayerWeights,
    EncoderLayerWeights,
    FeedForwardWeights,
    Linear,
    Network,
    Norm,
    StackWeights,
)

_Stack = StackWeights[EncoderLayerWeights] | StackWeights[DecoderLayerWeights]


@dataclass(frozen=True, kw_only=True)
class TorchModel:
    """Both stacks, ready to run, and the memory their weights take."""

    encoder: Encoder
    decoder: Decoder
    nbytes: int


def build_model(
    network: Network,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantization: str = "none",
    longest_source: int,
    longest_target: int,
) -> TorchModel:
    """Read the weights, one layer at a time, and lay them out to compute in `dtype` on `device`.

    `quantization`: "int8" for all matrices; "int4", "bnb-int8" or "bnb-nf4" for those of the layers. With "int4" they
    are already rounded, and the output matrix is int8.
    `longest_source` and `longest_target` limit the positions that the model serves, padding included.
    """
    return _Builder(network, dtype, device, quantization).build(longest_source, longest_target)


class _Builder:
    def __init__(self, network: Network, dtype: torch.dtype, device: torch.device, quantization: str) -> None:
        self._network = network
        self._quantization = quantization
        self._dtype = dtype
        self._device = device
        self._nbytes = 0
        self._norm = self._leading_norm()
        # The matrices that read a leading norm take over its factor.
        self._factor = self._norm.factor

    def build(self, longest_source: int, longest_target: int) -> TorchModel:
        network = self._network
        source_tokens_VD = self._tokens(network.encoder)
        target_tokens_VD = source_tokens_VD
        if network.decoder.embedding_VD is not network.encoder.embedding_VD:
            target_tokens_VD = self._tokens(network.decoder)
        encoder = Encoder(
            embedding=self._embedding(network.encoder, source_tokens_VD, longest_source, unplaced_token=None),
            layers=[self._encoder_layer(layer) for layer in network.encoder.layers],
            bias=EncoderBias(
                self._bias_tables(network.encoder),
                network.encoder_heads,
                max_distance=network.relative_max_distance,
                longest=longest_source,
            ),
            norm=self._norm,
            head_dim=network.head_dim,
        )
        cross: list[AttentionWeights] = []
        layers = [self._decoder_layer(layer, cross) for layer in network.decoder.layers]
        decoder = Decoder(
            embedding=self._embedding(
                network.decoder, target_tokens_VD, longest_target, unplaced_token=network.unplaced_token
            ),
            layers=layers,
            cross_keys_values=self._cross_keys_values(cross),
            cross_heads=[len(heads) for heads in network.cross_heads],
            bias=DecoderBias(
                self._bias_tables(network.decoder),
                network.self_heads,
                max_distance=network.relative_max_distance,
                longest=longest_target,
                dtype=self._dtype,
                device=self._device,
            ),
            norm=self._norm,
            output=self._output(),
            head_dim=network.head_dim,
        )
        return TorchModel(encoder=encoder, decoder=decoder, nbytes=self._nbytes)

    def _leading_norm(self) -> RowNorm:
        network = self._network
        if not network.norm_first:
            return NoNorm()
        if network.norm == "rms" and self._device.type == "cuda":
            return FusedRMSNorm(width=network.width, eps=network.norm_eps, dtype=self._dtype)
        if network.norm == "rms":
            return PlainRMSNorm(width=network.width, eps=network.norm_eps, dtype=self._dtype, device=self._device)
        return LayerNorm(width=network.width, eps=network.norm_eps)

    def _tokens(self, stack: _Stack) -> Tensor:
        return self._plain(stack.embedding_VD * stack.embedding_scale)

    def _embedding(
        self,
        stack: _Stack,
        tokens_VD: Tensor,
        longest: int,
        *,
        unplaced_token: int | None,
    ) -> Embedding:
        positions_PD = None
        if stack.positions_PD is not None:
            # Sizes are rounded up, so padding may be at positions that the network does not have.
            positions_PD = self._plain(
                F.pad(stack.positions_PD[:longest], (0, 0, 0, max(0, longest - len(stack.positions_PD))))
            )
        return Embedding(
            tokens_VD=tokens_VD,
            positions_PD=positions_PD,
            unplaced_token=unplaced_token,
            norm=self._norm_of(stack.embedding_norm),
        )

    def _encoder_layer(self, layer: EncoderLayerWeights) -> EncoderLayer:
        return EncoderLayer(
            attention=self._self_attention(layer.attention),
            ffn=self._feed_forward(layer.ffn),
        )

    def _decoder_layer(self, layer: DecoderLayerWeights, cross: list[AttentionWeights]) -> DecoderLayer:
        """Adds the layer's cross-attention to `cross`: its keys and values come later."""
        if layer.cross is not None and layer.cross.heads:
            cross.append(layer.cross)
        return DecoderLayer(
            attention=self._self_attention(layer.attention),
            cross=self._cross_attention(layer.cross),
            ffn=self._feed_forward(layer.ffn),
        )

    def _self_attention(self, attention: AttentionWeights | None) -> SelfAttention | BiasAndNorm | None:
        if attention is None:
            return None
        if not attention.heads:
            return self._bias_and_norm(attention.out.bias_O, attention.after)
        query, head_dim = attention.query, self._network.head_dim
        bias = query.bias_O
        if bias is not None:
            nothing = torch.zeros_like(bias)
            bias = by_head([bias, nothing, nothing], head_dim)
        return SelfAttention(
            heads=len(attention.heads),
            qkv=self._matrix(
                by_head([query.weight_OI, attention.key.weight_OI, attention.value.weight_OI], head_dim) * self._factor,
                bias,
            ),
            out=self._matrix(attention.out.weight_OI, attention.out.bias_O),
            after=self._norm_of(attention.after),
        )

    def _cross_attention(self, cross: AttentionWeights | None) -> CrossAttention | BiasAndNorm | None:
        if cross is None:
            return None
        if not cross.heads:
            return self._bias_and_norm(cross.out.bias_O, cross.after)
        return CrossAttention(
            query=self._matrix(cross.query.weight_OI * self._factor, cross.query.bias_O),
            out=self._matrix(cross.out.weight_OI, cross.out.bias_O),
            after=self._norm_of(cross.after),
        )

    def _feed_forward(self, ffn: FeedForwardWeights | None) -> FeedForward | BiasAndNorm | None:
        if ffn is None:
            return None
        if ffn.into.weight_OI.shape[0] == 0:
            return self._bias_and_norm(ffn.out.bias_O, ffn.after)
        gate = None
        if ffn.gate is not None:
            gate = self._matrix(ffn.gate.weight_OI * self._factor, ffn.gate.bias_O)
        return FeedForward(
            activation=self._network.activation,
            into=self._matrix(ffn.into.weight_OI * self._factor, ffn.into.bias_O),
            gate=gate,
            out=self._feed_forward_out(ffn.out),
            after=self._norm_of(ffn.after),
        )

    def _feed_forward_out(self, out: Linear) -> Matrix:
        """In float16, T5's sums over feed-forward units overflow; transformers also keeps this matrix in float32."""
        if self._dtype == torch.float16 and self._network.norm == "rms":
            return self._counted(WideMatrix(out.weight_OI, out.bias_O))
        return self._matrix(out.weight_OI, out.bias_O)

    def _cross_keys_values(self, cross: list[AttentionWeights]) -> Matrix | None:
        if not cross:
            return None
        parts = [by_head([layer.key.weight_OI, layer.value.weight_OI], self._network.head_dim) for layer in cross]
        return self._matrix(torch.cat(parts) * self._factor, None)

    def _output(self) -> Matrix:
        output = self._network.output()
        weight_OI = output.weight_OI * self._factor
        if self._quantization in BYTES_PER_WEIGHT:  # too few bits would show in the logits first
            return self._plain_matrix(weight_OI, output.bias_O)
        if self._quantization == "int4":
            return self._counted(Int8Matrix(weight_OI, output.bias_O))
        return self._matrix(weight_OI, output.bias_O)

    def _bias_tables(self, stack: _Stack) -> list[Tensor | None]:
        """By layer; a table that layers share is converted once and stays one object."""
        distinct = {id(table_KH): table_KH for table_KH in stack.position_biases_KH}
        converted = {key: self._optional(table_KH) for key, table_KH in distinct.items()}
        return [converted[id(table_KH)] for table_KH in stack.position_biases_KH]

    def _bias_and_norm(self, bias_D: Tensor | None, after: Norm | None) -> BiasAndNorm:
        return BiasAndNorm(bias_D=self._optional(bias_D), after=self._norm_of(after))

    def _norm_of(self, norm: Norm | None) -> RowNorm:
        if norm is None:
            return NoNorm()
        return LayerNorm(
            width=self._network.width,
            eps=self._network.norm_eps,
            gain_D=self._plain(norm.gain_D),
            shift_D=self._optional(norm.shift_D),
        )

    def _optional(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else self._plain(tensor)

    def _plain(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self._dtype)
        self._nbytes += tensor.nbytes
        return tensor

    def _matrix(self, weight_OI: Tensor, bias_O: Tensor | None) -> Matrix:
        if self._quantization == "none":
            return self._plain_matrix(weight_OI, bias_O)
        if self._quantization == "int8":
            return self._counted(Int8Matrix(weight_OI, bias_O))
        if self._quantization == "int4":
            return self._counted(RoundedRowsMatrix(weight_OI, bias_O))
        bias_O = None if bias_O is None else bias_O.to(self._dtype)
        return self._counted(quantize(self._quantization, weight_OI, bias_O))

    def _plain_matrix(self, weight_OI: Tensor, bias_O: Tensor | None) -> Matrix:
        bias_O = None if bias_O is None else bias_O.to(self._dtype)
        return self._counted(DenseMatrix(weight_OI.to(self._dtype), bias_O))

    def _counted(self, matrix: Matrix) -> Matrix:
        self._nbytes += matrix.nbytes
        return matrix
