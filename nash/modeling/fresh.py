"""Models with random weights, for training from scratch."""

from typing import Any

from transformers import (
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    MarianConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
)

from nash.errors import RequestError
from nash.recipes.recipe import ModelShape

_FEWEST_POSITIONS = 512  # of a Marian: requests may be longer than the training texts


def new_model(
    shape: ModelShape, tokenizer: PreTrainedTokenizerBase, max_source_tokens: int, max_target_tokens: int
) -> PreTrainedModel:
    """A model with random weights (from torch's global generator) for the tokenizer's vocabulary.

    Raises:
        RequestError: the tokenizer does not name its padding token or its end token.
    """
    for name in ("pad_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise RequestError(f"the tokenizer has no {name}: set it in its tokenizer_config.json")
    tokens = {
        "decoder_start_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if shape.family == "t5":
        config = _t5_config(shape, vocab_size=len(tokenizer), **tokens)
    else:
        most = max(_FEWEST_POSITIONS, max_source_tokens, max_target_tokens)
        config = _marian_config(shape, vocab_size=len(tokenizer), max_position_embeddings=most, **tokens)
    model: PreTrainedModel = AutoModelForSeq2SeqLM.from_config(config)
    model.generation_config = GenerationConfig(max_new_tokens=max_target_tokens, **tokens)
    return model


def _t5_config(shape: ModelShape, **known: Any) -> PreTrainedConfig:
    return T5Config(
        d_model=shape.d_model,
        num_heads=shape.num_heads,
        d_kv=shape.head_width,
        d_ff=shape.d_ff,
        num_layers=shape.encoder_layers,
        num_decoder_layers=shape.decoder_layers,
        feed_forward_proj=shape.feed_forward_proj,
        dropout_rate=shape.dropout,
        **known,
    )


def _marian_config(shape: ModelShape, **known: Any) -> PreTrainedConfig:
    """Marian as its translation models are, except that a narrow model starts from larger weights.

    The embedding is multiplied by the root of `d_model`. Weights of a standard deviation of one over that root give it
    the scale of the positions that are added to it; Marian's default of 0.02 suits a width of 2,500.
    """
    return MarianConfig(
        d_model=shape.d_model,
        encoder_attention_heads=shape.num_heads,
        decoder_attention_heads=shape.num_heads,
        encoder_ffn_dim=shape.d_ff,
        decoder_ffn_dim=shape.d_ff,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        activation_function="relu",
        dropout=shape.dropout,
        scale_embedding=True,
        init_std=shape.d_model**-0.5,
        forced_eos_token_id=None,
        **known,
    )
