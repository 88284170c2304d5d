"""The models and the workload, at full size and in miniature, and the figures published for them."""

import random
from dataclasses import dataclass
from typing import Any

from model_store.model.config import layout_of
from model_store.model.spec import ModelSpec

TARGET_OF_PUBLISHED = 0.7
TARGET_STEP_MS = 0.5  # T5-base, batch 1


@dataclass(frozen=True, kw_only=True)
class Published:
    """TensorRT-LLM's figures for a batch on one H100: bfloat16, greedy, 260 to 440 tokens in, up to 128 out."""

    total_ms: float
    tokens_per_s: float  # of its PyTorch backend, like the time
    older_tokens_per_s: float  # of the engine that it has removed


# By shape and batch. Their answers may end before 128 tokens and ours may not, so compare tokens per second.
PUBLISHED = {
    "flan-t5-xl": {
        32: Published(total_ms=706.0, tokens_per_s=3312.0, older_tokens_per_s=3153.0),
        64: Published(total_ms=1137.0, tokens_per_s=4184.0, older_tokens_per_s=3863.0),
        128: Published(total_ms=1999.0, tokens_per_s=4768.0, older_tokens_per_s=4601.0),
    },
    "bart-large": {
        32: Published(total_ms=280.0, tokens_per_s=10662.0, older_tokens_per_s=12611.0),
        64: Published(total_ms=343.0, tokens_per_s=16209.0, older_tokens_per_s=22007.0),
        128: Published(total_ms=473.0, tokens_per_s=23518.0, older_tokens_per_s=31544.0),
    },
}


def t5(*, d_model: int, d_kv: int, heads: int, d_ff: int, layers: int, vocab_size: int, gated: bool) -> dict[str, Any]:
    """The config.json of a T5."""
    return {
        "model_type": "t5",
        "d_model": d_model,
        "d_kv": d_kv,
        "num_heads": heads,
        "d_ff": d_ff,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "vocab_size": vocab_size,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "tie_word_embeddings": not gated,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }


def bart(*, d_model: int, heads: int, d_ff: int, layers: int, vocab_size: int) -> dict[str, Any]:
    """The config.json of a BART."""
    return {
        "model_type": "bart",
        "d_model": d_model,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": d_ff,
        "decoder_ffn_dim": d_ff,
        "vocab_size": vocab_size,
        "activation_function": "gelu",
        "max_position_embeddings": 1024,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    }


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Everything that differs between a full measurement and a miniature one."""

    device: str
    dtype: str
    shapes: dict[str, dict[str, Any]]  # config.json by name
    batches: tuple[int, ...]  # the largest first: the others share the memory of its graphs
    source_tokens: tuple[int, int]  # from, to
    new_tokens: int
    single_source_tokens: int  # of the measurement at batch 1
    repeats: int
    calls: int  # of a step, or of a small operation, timed together
    copy_bytes: int
    product_size: int  # rows and columns of the matrices whose product measures peak arithmetic
    cold_bytes: int  # amount to read in turn so that no cache holds it
    drill_slots: int


FULL = Scale(
    device="cuda",
    dtype="bfloat16",
    shapes={
        "flan-t5-xl": t5(d_model=2048, d_kv=64, heads=32, d_ff=5120, layers=24, vocab_size=32128, gated=True),
        "bart-large": bart(d_model=1024, heads=16, d_ff=4096, layers=12, vocab_size=50264),
        "t5-base": t5(d_model=768, d_kv=64, heads=12, d_ff=3072, layers=12, vocab_size=32128, gated=False),
        "t5-small": t5(d_model=512, d_kv=64, heads=8, d_ff=2048, layers=6, vocab_size=32128, gated=False),
    },
    batches=(128, 64, 32),
    source_tokens=(260, 440),
    new_tokens=128,
    single_source_tokens=64,
    repeats=5,
    calls=100,
    copy_bytes=2**32,
    product_size=8192,
    cold_bytes=2**28,
    drill_slots=64,
)
MINIATURE = Scale(
    device="cpu",
    dtype="float32",
    shapes={
        "flan-t5-xl": t5(d_model=32, d_kv=8, heads=4, d_ff=48, layers=2, vocab_size=99, gated=True),
        "bart-large": bart(d_model=32, heads=4, d_ff=48, layers=2, vocab_size=99),
        "t5-base": t5(d_model=16, d_kv=8, heads=2, d_ff=32, layers=2, vocab_size=99, gated=False),
        "t5-small": t5(d_model=16, d_kv=8, heads=2, d_ff=32, layers=1, vocab_size=99, gated=False),
    },
    batches=(4, 2),
    source_tokens=(6, 12),
    new_tokens=8,
    single_source_tokens=8,
    repeats=1,
    calls=2,
    copy_bytes=2**20,
    product_size=64,
    cold_bytes=2**14,
    drill_slots=2,
)


def step_weight_bytes(spec: ModelSpec) -> int:
    """Bytes of the half-precision weights that a decoder step reads, without those that make the source's keys and
    values, which are read once.
    """
    once = ("EncDecAttention.k", "EncDecAttention.v", "encoder_attn.k_proj", "encoder_attn.v_proj", "embed", "bias.w")
    decoder = 0
    for name, shape in layout_of(spec).shapes():
        if "decoder." in name and len(shape) == 2 and not any(part in name for part in once):
            decoder += shape[0] * shape[1]
    return 2 * (decoder + spec.target_vocab_size * spec.d_model)


def read_bytes(spec: ModelSpec, sources: list[list[int]], new_tokens: int) -> int:
    """Bytes that all steps must read in half precision: the weights once per step, and each row's keys and values.

    The encoder, arithmetic and launches are not counted.
    """
    position_bytes = 2 * 2 * spec.head_dim
    cross = position_bytes * sum(len(layer.cross_heads) for layer in spec.decoder)
    own = position_bytes * sum(len(layer.self_heads) for layer in spec.decoder)
    by_row = sum(cross * len(source) + own * (new_tokens + 1) / 2 for source in sources)
    return round(new_tokens * (step_weight_bytes(spec) + by_row))


def make_sources(spec: ModelSpec, count: int, lengths: tuple[int, int]) -> list[list[int]]:
    """Random texts; equal calls give equal texts."""
    draw = random.Random(count)
    return [
        [*(draw.randrange(5, spec.vocab_size) for _ in range(draw.randint(*lengths) - 1)), spec.eos_id]
        for _ in range(count)
    ]
