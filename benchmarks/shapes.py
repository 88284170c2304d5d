"""Models of well-known shapes with random weights: a model's speed does not depend on what it has learned."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from model_store.model.config import spec_of
from model_store.model.spec import shortened
from nash.recipes.layer_selection import select_layers
from nash.structure.compaction import compact, shorten_decoder
from nash.structure.masking import GateKinds, Gates

ENCODER_SPARSITY = 0.3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A T5 and a workload for it."""

    name: str
    d_model: int
    num_heads: int
    d_kv: int
    d_ff: int
    layers: int
    vocab_size: int
    source_tokens: int
    new_tokens: int
    batches: tuple[int, ...]


SHAPES = (
    Shape(
        name="g2p",
        d_model=192,
        num_heads=3,
        d_kv=64,
        d_ff=768,
        layers=6,
        vocab_size=72,
        source_tokens=8,
        new_tokens=8,
        batches=(1, 16),
    ),
    Shape(
        name="t5-small",
        d_model=512,
        num_heads=8,
        d_kv=64,
        d_ff=2048,
        layers=6,
        vocab_size=32128,
        source_tokens=64,
        new_tokens=64,
        batches=(1, 8, 32),
    ),
)

T5_BASE = Shape(
    name="t5-base",
    d_model=768,
    num_heads=12,
    d_kv=64,
    d_ff=3072,
    layers=12,
    vocab_size=32128,
    source_tokens=64,
    new_tokens=64,
    batches=(1, 16),
)
NAMED = {shape.name: shape for shape in (*SHAPES, T5_BASE)}


def config_of(shape: Shape) -> T5Config:
    """The configuration of a dense model of the shape."""
    return T5Config(
        vocab_size=shape.vocab_size,
        d_model=shape.d_model,
        num_heads=shape.num_heads,
        d_kv=shape.d_kv,
        d_ff=shape.d_ff,
        num_layers=shape.layers,
        num_decoder_layers=shape.layers,
        decoder_start_token_id=0,
    )


def build(shape: Shape) -> T5ForConditionalGeneration:
    """A dense model of the shape with random weights."""
    torch.manual_seed(0)
    return T5ForConditionalGeneration(config_of(shape)).eval()


def prune(dense: T5ForConditionalGeneration, decoder_layers: int, encoder_sparsity: float = ENCODER_SPARSITY) -> Any:
    """The model cut as `nash prune` cuts it, but by untrained gates: all encoder layers alike."""
    spec = spec_of(dense.config.to_dict())
    kept = select_layers(spec.dense_decoder_layers, decoder_layers)
    gates = Gates(shortened(spec, kept), GateKinds())
    for sublayer, alpha in zip(gates.sublayers, gates.alphas(), strict=True):
        if not sublayer.has_heads:
            alpha.data.copy_(torch.linspace(-1, 1, len(alpha)))  # cut units before heads, alike in every layer
    return compact(shorten_decoder(dense, kept), spec, kept, gates.harden(encoder_sparsity))


def word_of(token: int) -> str:
    """The text of a token in the vocabularies made here."""
    return f"w{token}"


T5_SPECIAL = {"<pad>": 0, "</s>": 1, "<unk>": 2}


def save_with_tokenizer(
    model: PreTrainedModel, directory: Path, vocab_size: int, special: Mapping[str, int] = T5_SPECIAL
) -> None:
    """Save the model and a vocabulary, which CTranslate2's converter needs; `special` has at least T5's three."""
    model.save_pretrained(directory)
    taken = set(special.values())
    words = {**special, **{word_of(token): token for token in range(vocab_size) if token not in taken}}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        bos_token="<s>" if "<s>" in special else None,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(directory)
