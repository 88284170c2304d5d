"""Tiny random checkpoints of every family, as transformers writes them, without tokenizers.

Nothing is at its neutral value: biases, norms, positions and the logits' bias are random, heads and widths odd.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

VOCAB_SIZE = 37
FIRST_TOKEN = 3  # below it stand the special ones

_T5: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 24,
    "d_kv": 10,
    "d_ff": 41,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "decoder_start_token_id": 0,
}
# T5's architecture with its own sizes and tokens: the keys are those of the published files, which older versions of
# transformers wrote. They say of the logits' scale what they say of the output matrix.
_PUBLISHED_T5: Mapping[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "classifier_dropout": 0.0,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_layers": 2,
    "num_decoder_layers": 2,
    "output_past": True,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "transformers_version": "4.35.0",
    "use_cache": True,
}
_BART: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 24,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 41,
    "decoder_ffn_dim": 28,
    "max_position_embeddings": 75,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model: its classes in transformers, and what its config says."""

    config: type[Any]
    model: type[PreTrainedModel]
    changes: Mapping[str, Any] = field(default_factory=dict)
    published: bool = False  # config.json says what `changes` does and nothing else, not what transformers makes of it

    @property
    def fields(self) -> dict[str, Any]:
        if self.published:
            return dict(self.changes)
        return {**(_T5 if self.config in (T5Config, MT5Config, UMT5Config) else _BART), **self.changes}


CASES: Mapping[str, Case] = {
    "bart": Case(config=BartConfig, model=BartForConditionalGeneration),
    "bart, untied, scaled": Case(
        config=BartConfig,
        model=BartForConditionalGeneration,
        changes={"tie_word_embeddings": False, "scale_embedding": True, "activation_function": "gelu_new"},
    ),
    "mbart": Case(config=MBartConfig, model=MBartForConditionalGeneration, changes={"scale_embedding": True}),
    "marian": Case(
        config=MarianConfig,
        model=MarianMTModel,
        changes={"scale_embedding": True, "activation_function": "swish", "d_model": 15, "encoder_layers": 2},
    ),
    "marian, two vocabularies": Case(
        config=MarianConfig,
        model=MarianMTModel,
        changes={"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 31},
    ),
    "pegasus": Case(
        config=PegasusConfig,
        model=PegasusForConditionalGeneration,
        changes={"activation_function": "relu", "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    ),
    "m2m_100": Case(config=M2M100Config, model=M2M100ForConditionalGeneration, changes={"activation_function": "relu"}),
    "m2m_100, odd width": Case(
        config=M2M100Config,
        model=M2M100ForConditionalGeneration,
        changes={"d_model": 15, "decoder_attention_heads": 1, "encoder_attention_heads": 1, "scale_embedding": False},
    ),
    "mt5": Case(config=MT5Config, model=MT5ForConditionalGeneration),
    "umt5": Case(config=UMT5Config, model=UMT5ForConditionalGeneration, changes={"d_kv": 6}),
    # MADLAD-400: heads that are together twice as wide as the model, another token to start with than to pad with.
    "madlad": Case(
        config=T5Config,
        model=T5ForConditionalGeneration,
        published=True,
        changes={
            **_PUBLISHED_T5,
            "d_ff": 48,
            "d_kv": 12,
            "d_model": 24,
            "eos_token_id": 2,
            "n_positions": 512,
            "num_heads": 4,
            "pad_token_id": 1,
            "vocab_size": 2560,
        },
    ),
    # Aya-101: mT5's largest shape and vocabulary under T5's name.
    "aya": Case(
        config=T5Config,
        model=T5ForConditionalGeneration,
        published=True,
        changes={
            **_PUBLISHED_T5,
            "d_ff": 60,
            "d_kv": 4,
            "d_model": 24,
            "eos_token_id": 1,
            "num_heads": 6,
            "pad_token_id": 0,
            "tokenizer_class": "T5Tokenizer",
            "vocab_size": 2501,
        },
    ),
}


def build_tiny(case: Case, directory: Path, *, seed: int = 0) -> Path:
    """Write a random model of `case` into `directory` and return it; equal arguments give equal files."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = case.model(case.config(**case.fields))
        if not case.fields.get("tie_word_embeddings", True):  # T5's classes tie at construction, whatever they are told
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:  # sinusoidal tables are frozen
                    _draw(name, parameter)
            if hasattr(model, "final_logits_bias"):
                model.final_logits_bias.normal_()
    model.save_pretrained(directory)
    if case.published:
        (directory / "config.json").write_text(json.dumps(case.fields))
    return directory


def _draw(name: str, parameter: torch.Tensor) -> None:
    if name.endswith(("layer_norm.weight", "layernorm_embedding.weight")):
        parameter.uniform_(0.5, 1.5)
        parameter.mul_(torch.randint(0, 2, parameter.shape) * 2 - 1)
    elif parameter.dim() == 1 or "embed" in name or "shared" in name:
        parameter.normal_(std=0.5)
    elif name.endswith(".q.weight"):  # mT5 scales no scores: its queries are made small
        parameter.normal_(std=parameter.shape[1] ** -0.5 * 0.3)
    else:
        parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
