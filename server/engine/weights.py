"""From `model.safetensors` to the matrices of a model: checked, folded, fused and laid out.

Axes: D model width, H heads of one layer, E width of a head, F feed-forward units, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model_store.spec import DecoderLayerSpec, EncoderLayerSpec, ModelSpec
from server.engine.errors import LoadError
from server.engine.matrix import Matrix, Norm, PlainMatrix, fold_norm, lay_out
from server.engine.model import (
    CrossAttention,
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    FeedForward,
    SelfAttention,
)
from server.engine.position_bias import DecoderBias, EncoderBias

WEIGHTS_FILE = "model.safetensors"
OUTPUT_NAME = "lm_head.weight"

# Names that old checkpoints hold beside the real ones: copies of the embedding, and a table that T5 never used.
_REDUNDANT = frozenset(
    {
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    }
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """Both stacks, ready to run, and the memory that their weights take."""

    encoder: Encoder
    decoder: Decoder
    nbytes: int


def load_model(
    directory: Path,
    spec: ModelSpec,
    *,
    dtype: torch.dtype,
    device: torch.device,
    longest_source: int,
    longest_target: int,
) -> Model:
    """Read a checkpoint of the shape `spec` and compute in `dtype` on `device`.

    `longest_source` and `longest_target` bound the positions that the bias tables serve.

    Raises:
        LoadError: the file is missing or no safetensors file, or its tensors are not those of `spec`.
    """
    path = directory / WEIGHTS_FILE
    try:
        with safe_open(path, framework="pt") as file:
            untied = _check(path, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, spec)  # noqa: SIM118 (no mapping)
            return _Builder(
                spec,
                file.get_tensor,
                untied=untied,
                dtype=dtype,
                device=device,
                longest_source=longest_source,
                longest_target=longest_target,
            ).build()
    except FileNotFoundError:
        raise LoadError(f"{path} is not there: a model directory holds config.json and {WEIGHTS_FILE}") from None
    except SafetensorError as error:
        raise LoadError(f"{path} is not a safetensors file ({error}): copy or pull the model again") from error


def _check(path: Path, found: dict[str, tuple[int, ...]], spec: ModelSpec) -> bool:
    """Refuse tensors that are not those of `spec`; returns whether there is an output matrix of its own."""
    wanted = dict(spec.tensor_shapes())
    untied = OUTPUT_NAME in found
    if untied:
        wanted[OUTPUT_NAME] = (spec.vocab_size, spec.d_model)
    for name, shape in wanted.items():
        if name not in found:
            raise LoadError(f"{path} lacks the tensor {name!r} that its config.json calls for")
        if found[name] != shape:
            raise LoadError(f"{path}: {name!r} has shape {found[name]}, but config.json makes it {shape}")
    if unknown := sorted(found.keys() - wanted.keys() - _REDUNDANT):
        raise LoadError(f"{path} holds {unknown[0]!r}, which its config.json has no place for")
    return untied


class _Builder:
    """Turns named tensors into layers, one at a time, so that a model is never in memory twice.

    Norms are folded in at least float32.
    """

    def __init__(
        self,
        spec: ModelSpec,
        read: Callable[[str], Tensor],
        *,
        untied: bool,
        dtype: torch.dtype,
        device: torch.device,
        longest_source: int,
        longest_target: int,
    ) -> None:
        self._spec = spec
        self._read = read
        self._untied = untied
        self._dtype = dtype
        self._device = device
        self._fold_dtype = torch.promote_types(dtype, torch.float32)
        self._longest_source = longest_source
        self._longest_target = longest_target
        self._nbytes = 0

    def build(self) -> Model:
        spec = self._spec
        norm = Norm(width=spec.d_model, eps=spec.layer_norm_eps, dtype=self._dtype, device=self._device)
        embedding_VD = self._plain(self._tensor("shared.weight"))
        encoder = Encoder(
            embedding_VD=embedding_VD,
            layers=[self._encoder_layer(i, layer) for i, layer in enumerate(spec.encoder)],
            bias=EncoderBias(
                self._bias_table("encoder"),
                [layer.heads for layer in spec.encoder],
                max_distance=spec.relative_max_distance,
                longest=self._longest_source,
            ),
            norm=norm,
            head_dim=spec.head_dim,
        )
        output_scale_D = self._tensor("decoder.final_layer_norm.weight") * math.sqrt(spec.d_model)
        if spec.scale_logits:
            output_scale_D = output_scale_D * spec.d_model**-0.5
        decoder = Decoder(
            embedding_VD=embedding_VD,
            layers=[self._decoder_layer(i, layer) for i, layer in enumerate(spec.decoder)],
            cross_keys_values=self._cross_keys_values(),
            cross_heads=[len(layer.cross_heads) for layer in spec.decoder],
            bias=DecoderBias(
                self._bias_table("decoder"),
                [layer.self_heads for layer in spec.decoder],
                max_distance=spec.relative_max_distance,
                longest=self._longest_target,
            ),
            norm=norm,
            output_scale_D=self._plain(output_scale_D),
            output=self._output(embedding_VD),
            head_dim=spec.head_dim,
        )
        return Model(encoder=encoder, decoder=decoder, nbytes=self._nbytes)

    def _encoder_layer(self, index: int, layer: EncoderLayerSpec) -> EncoderLayer:
        block = f"encoder.block.{index}.layer"
        return EncoderLayer(
            attention=self._self_attention(f"{block}.0", layer.heads, single_rows=False),
            ffn=self._feed_forward(f"{block}.1", layer.ffn, single_rows=False),
        )

    def _decoder_layer(self, index: int, layer: DecoderLayerSpec) -> DecoderLayer:
        block = f"decoder.block.{index}.layer"
        cross = None
        if layer.cross_heads:
            query = self._normed(f"{block}.1", "EncDecAttention.q")
            cross = CrossAttention(
                query=self._matrix(query, single_rows=True),
                out=self._matrix(self._tensor(f"{block}.1.EncDecAttention.o.weight"), single_rows=True),
            )
        return DecoderLayer(
            attention=self._self_attention(f"{block}.0", layer.self_heads, single_rows=True),
            cross=cross,
            ffn=self._feed_forward(f"{block}.2", layer.ffn, single_rows=True),
        )

    def _self_attention(self, prefix: str, heads: tuple[int, ...], *, single_rows: bool) -> SelfAttention | None:
        if not heads:
            return None
        by_kind = [self._by_head(self._normed(prefix, f"SelfAttention.{kind}")) for kind in "qkv"]
        qkv = torch.stack(by_kind, dim=1).flatten(0, 2)  # [H, 3, E, D] -> [H*3*E, D]
        return SelfAttention(
            heads=heads,
            qkv=self._matrix(qkv, single_rows=single_rows),
            out=self._matrix(self._tensor(f"{prefix}.SelfAttention.o.weight"), single_rows=single_rows),
        )

    def _feed_forward(self, prefix: str, units: int, *, single_rows: bool) -> FeedForward | None:
        if units == 0:
            return None
        into, gate = ("wi_1", "wi_0") if self._spec.gated_ffn else ("wi", None)
        return FeedForward(
            activation=self._spec.activation,
            into=self._matrix(self._normed(prefix, f"DenseReluDense.{into}"), single_rows=single_rows),
            gate=self._matrix(self._normed(prefix, f"DenseReluDense.{gate}"), single_rows=single_rows)
            if gate
            else None,
            out=self._matrix(self._tensor(f"{prefix}.DenseReluDense.wo.weight"), single_rows=single_rows),
        )

    def _cross_keys_values(self) -> Matrix | None:
        norm_D = self._tensor("encoder.final_layer_norm.weight")
        parts = []
        for i, layer in enumerate(self._spec.decoder):
            if layer.cross_heads:
                attention = f"decoder.block.{i}.layer.1.EncDecAttention"
                by_kind = [self._by_head(self._tensor(f"{attention}.{kind}.weight")) for kind in "kv"]
                parts.append(torch.stack(by_kind, dim=1).flatten(0, 2))  # [H, 2, E, D] -> [H*2*E, D]
        if not parts:
            return None
        return self._matrix(fold_norm(torch.cat(parts), norm_D), single_rows=False)

    def _output(self, embedding_VD: Tensor) -> Matrix:
        if self._untied:
            return self._matrix(self._tensor(OUTPUT_NAME), single_rows=True)
        output = lay_out(embedding_VD, single_rows=True)
        if not isinstance(output, PlainMatrix):  # a plain one is the embedding itself
            self._nbytes += output.nbytes
        return output

    def _bias_table(self, stack: str) -> Tensor:
        return self._plain(self._tensor(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"))

    def _normed(self, prefix: str, name: str) -> Tensor:
        """A matrix with the norm of its sublayer folded in."""
        return fold_norm(self._tensor(f"{prefix}.{name}.weight"), self._tensor(f"{prefix}.layer_norm.weight"))

    def _by_head(self, weight: Tensor) -> Tensor:
        return weight.view(-1, self._spec.head_dim, self._spec.d_model)

    def _tensor(self, name: str) -> Tensor:
        # A copy, because the file's tensors are windows into it and the file may change.
        return self._read(name).to(device=self._device, dtype=self._fold_dtype, copy=True)

    def _plain(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self._dtype)
        self._nbytes += tensor.nbytes
        return tensor

    def _matrix(self, weight_OI: Tensor, *, single_rows: bool) -> Matrix:
        matrix = lay_out(weight_OI.to(self._dtype), single_rows=single_rows)
        self._nbytes += matrix.nbytes
        return matrix
