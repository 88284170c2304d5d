"""The tensors of a checkpoint by name and shape, dense or compact, in the two layouts that transformers has.

T5: a sublayer without heads or units has no tensors. The token embedding is `shared.weight`. A relative-position table
always has all of the dense model's heads and stands under block 0, whether or not block 0 has heads of its own.

BART: such a sublayer keeps what it still adds: the bias of its last matrix, and its norm where norms come last.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model_store.spec import ModelSpec

Shaped = Iterator[tuple[str, tuple[int, ...]]]


def t5_tensors(spec: "ModelSpec") -> Shaped:
    """What a T5 checkpoint must hold."""
    d, bias = spec.d_model, (spec.relative_buckets, spec.num_heads)
    yield "shared.weight", (spec.vocab_size, d)
    for i, layer in enumerate(spec.encoder):
        block = f"encoder.block.{i}.layer"
        yield from _t5_attention(spec, f"{block}.0", "SelfAttention", len(layer.heads))
        yield from _t5_ffn(spec, f"{block}.1", layer.ffn)
    for i, decoder_layer in enumerate(spec.decoder):
        block = f"decoder.block.{i}.layer"
        yield from _t5_attention(spec, f"{block}.0", "SelfAttention", len(decoder_layer.self_heads))
        yield from _t5_attention(spec, f"{block}.1", "EncDecAttention", len(decoder_layer.cross_heads))
        yield from _t5_ffn(spec, f"{block}.2", decoder_layer.ffn)
    for stack in ("encoder", "decoder"):
        yield f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", bias
        yield f"{stack}.final_layer_norm.weight", (d,)


def optional_t5_tensors(spec: "ModelSpec") -> Shaped:
    """What it may hold besides: an output matrix of its own, copies of the embedding, a table that T5 never used."""
    for name in ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens"):
        yield f"{name}.weight", (spec.vocab_size, spec.d_model)
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    yield unused, (spec.relative_buckets, spec.num_heads)


def _t5_attention(spec: "ModelSpec", prefix: str, kind: str, heads: int) -> Shaped:
    if heads == 0:
        return
    inner = heads * spec.head_dim
    yield f"{prefix}.layer_norm.weight", (spec.d_model,)
    for name in ("q", "k", "v"):
        yield f"{prefix}.{kind}.{name}.weight", (inner, spec.d_model)
    yield f"{prefix}.{kind}.o.weight", (spec.d_model, inner)


def _t5_ffn(spec: "ModelSpec", prefix: str, units: int) -> Shaped:
    if units == 0:
        return
    yield f"{prefix}.layer_norm.weight", (spec.d_model,)
    for name in ("wi_0", "wi_1") if spec.gated_ffn else ("wi",):
        yield f"{prefix}.DenseReluDense.{name}.weight", (units, spec.d_model)
    yield f"{prefix}.DenseReluDense.wo.weight", (spec.d_model, units)


def bart_tensors(spec: "ModelSpec") -> Shaped:
    """What a checkpoint of BART's layout must hold."""
    d, facts = spec.d_model, spec.facts
    if spec.shared_embedding:
        yield "model.shared.weight", (spec.vocab_size, d)
    else:
        yield "model.encoder.embed_tokens.weight", (spec.vocab_size, d)
        yield "model.decoder.embed_tokens.weight", (spec.target_vocab_size, d)
    if not spec.tied_output:
        yield "lm_head.weight", (spec.target_vocab_size, d)
    for stack in ("encoder", "decoder"):
        if facts.positions == "learned":
            assert spec.max_positions is not None, "learned positions come in a number"
            yield f"model.{stack}.embed_positions.weight", (spec.max_positions + LEARNED_POSITIONS_START, d)
        if facts.embeds_norm:
            yield from _norm(f"model.{stack}.layernorm_embedding", d)
        if facts.norm_first:
            yield from _norm(f"model.{stack}.layer_norm", d)
    for i, layer in enumerate(spec.encoder):
        prefix = f"model.encoder.layers.{i}"
        yield from _bart_attention(spec, prefix, "self_attn", len(layer.heads))
        yield from _bart_ffn(spec, prefix, layer.ffn)
    for i, decoder_layer in enumerate(spec.decoder):
        prefix = f"model.decoder.layers.{i}"
        yield from _bart_attention(spec, prefix, "self_attn", len(decoder_layer.self_heads))
        yield from _bart_attention(spec, prefix, "encoder_attn", len(decoder_layer.cross_heads))
        yield from _bart_ffn(spec, prefix, decoder_layer.ffn)


def optional_bart_tensors(spec: "ModelSpec") -> Shaped:
    """What it may hold besides: the logits' bias, tables of positions that can be computed, tied matrices."""
    embedding = (spec.target_vocab_size, spec.d_model)
    if spec.facts.logits_bias:
        yield "final_logits_bias", (1, spec.target_vocab_size)
    if spec.facts.positions == "sinusoidal":
        assert spec.max_positions is not None, "a table of positions has a length"
        for stack in ("encoder", "decoder"):
            yield f"model.{stack}.embed_positions.weight", (spec.max_positions, spec.d_model)
    if spec.tied_output:
        yield "lm_head.weight", embedding
    if spec.shared_embedding:
        yield "model.encoder.embed_tokens.weight", embedding
        yield "model.decoder.embed_tokens.weight", embedding


# Learned positions begin in this row: fairseq kept the rows before it for padding.
LEARNED_POSITIONS_START = 2


def _bart_attention(spec: "ModelSpec", prefix: str, kind: str, heads: int) -> Shaped:
    inner = heads * spec.head_dim
    if heads:
        for name in ("q_proj", "k_proj", "v_proj"):
            yield f"{prefix}.{kind}.{name}.weight", (inner, spec.d_model)
            yield f"{prefix}.{kind}.{name}.bias", (inner,)
        yield f"{prefix}.{kind}.out_proj.weight", (spec.d_model, inner)
    yield f"{prefix}.{kind}.out_proj.bias", (spec.d_model,)
    if heads or not spec.facts.norm_first:
        yield from _norm(f"{prefix}.{kind}_layer_norm", spec.d_model)


def _bart_ffn(spec: "ModelSpec", prefix: str, units: int) -> Shaped:
    if units:
        yield f"{prefix}.fc1.weight", (units, spec.d_model)
        yield f"{prefix}.fc1.bias", (units,)
        yield f"{prefix}.fc2.weight", (spec.d_model, units)
    yield f"{prefix}.fc2.bias", (spec.d_model,)
    if units or not spec.facts.norm_first:
        yield from _norm(f"{prefix}.final_layer_norm", spec.d_model)


def _norm(prefix: str, d_model: int) -> Shaped:
    yield f"{prefix}.weight", (d_model,)
    yield f"{prefix}.bias", (d_model,)
