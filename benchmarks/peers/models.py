"""The models that all peers get: well-known shapes with random weights, written once into a cache folder."""

import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    MarianConfig,
    MarianMTModel,
    PreTrainedConfig,
    PreTrainedModel,
    T5ForConditionalGeneration,
)

from benchmarks.shapes import NAMED as T5_SHAPES
from benchmarks.shapes import T5_SPECIAL, config_of, save_with_tokenizer

# Random models repeat one token forever, so their answers would prove little. The output matrices of the decoder's
# feed-forward layers are centred and scaled up by this factor, so that each token leads to another one.
_LOUDER = 32.0
_FEED_FORWARD_OUT = ("DenseReluDense.wo.weight", "fc2.weight")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A well-known model."""

    name: str
    model: type[PreTrainedModel]
    config: PreTrainedConfig
    special: Mapping[str, int]  # words of the vocabulary that are not text

    def sources(self, batch: int, tokens: int) -> list[list[int]]:
        """Random ordinary tokens; a smaller batch has the first rows of a larger one."""
        draw = random.Random(0)
        ordinary = sorted(set(range(self.config.vocab_size)) - set(self.special.values()))
        return [draw.choices(ordinary, k=tokens) for _ in range(batch)]


def _bart_like(config: type[PreTrainedConfig], width: int, **fields: Any) -> PreTrainedConfig:
    """Six layers on each side, with heads of width 64 and feed-forward layers of four times the model width."""
    layers = {
        f"{side}_{field}": value
        for side in ("encoder", "decoder")
        for field, value in (("layers", 6), ("attention_heads", width // 64), ("ffn_dim", 4 * width))
    }
    return config(d_model=width, **layers, forced_eos_token_id=None, **fields)


def _t5(name: str) -> Shape:
    config = config_of(T5_SHAPES[name])
    return Shape(name=name, model=T5ForConditionalGeneration, config=config, special=T5_SPECIAL)


SHAPES = {
    shape.name: shape
    for shape in (
        _t5("t5-small"),
        _t5("t5-base"),
        Shape(
            name="marian",
            model=MarianMTModel,
            config=_bart_like(
                MarianConfig,
                512,
                vocab_size=65001,
                decoder_vocab_size=65001,
                max_position_embeddings=512,
                scale_embedding=True,
                activation_function="swish",
                static_position_embeddings=True,
                eos_token_id=0,
                pad_token_id=65000,
                decoder_start_token_id=65000,
            ),
            special={"</s>": 0, "<unk>": 1, "<pad>": 65000},
        ),
        Shape(
            name="bart-base",
            model=BartForConditionalGeneration,
            config=_bart_like(
                BartConfig,
                768,
                vocab_size=50265,
                max_position_embeddings=1024,
                normalize_before=False,  # as published; CTranslate2's converter needs both fields
                normalize_embedding=True,
            ),
            special={"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3},
        ),
    )
}


def build(shape: Shape) -> PreTrainedModel:
    """The model; equal calls give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = shape.model(shape.config).eval()
    with torch.no_grad():
        for name, weights in model.get_decoder().named_parameters():
            if name.endswith(_FEED_FORWARD_OUT):
                weights.sub_(weights.mean(dim=1, keepdim=True)).mul_(_LOUDER)
    config = shape.config
    model.generation_config = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    return model


def model_folder(shape: Shape, cache: Path) -> Path:
    """The model's folder, which is written if it does not exist yet."""
    folder = cache / shape.name / "model"
    if not folder.is_dir():
        partial = folder.with_name("model.partial")
        shutil.rmtree(partial, ignore_errors=True)
        save_with_tokenizer(build(shape), partial, shape.config.vocab_size, shape.special)
        partial.rename(folder)
    return folder
