"""Tiny models of every family in folders, as transformers writes them, each with a tokenizer of its family's kind.

The weights are loud enough for the likeliest token to be clearly so: kernels that round otherwise say the same.
"""

import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
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
)

from tests.golden.whole_numbers import Weights, drawn, positive, signed

CHARACTERS = (*string.ascii_lowercase, " ")
LATIN = "abcdefghijklmnopqrstuvwxyz éü漢"  # of two and of three bytes too

_T5_SPECIAL = ("<pad>", "</s>", "<unk>")
_BART_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")

_T5: Mapping[str, Any] = {
    "d_model": 24,
    "d_kv": 10,
    "d_ff": 41,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
_BART: Mapping[str, Any] = {
    "d_model": 24,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 41,
    "decoder_ffn_dim": 28,
    "max_position_embeddings": 75,
    "dropout": 0.0,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}


def characters(special: Sequence[str], around: str, last: Sequence[str] = ()) -> Tokenizer:
    """One token a character; `around` is what stands around a text, as `$A </s>`."""
    vocabulary = [*special, *CHARACTERS, *last]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return _around(tokenizer, [*special, *last], around)


def single_bytes(special: Sequence[str], around: str) -> Tokenizer:
    """One token a byte, as BART writes bytes: a character may be made of several."""
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(LATIN)
    vocabulary = [*special, *sorted(set("".join(piece for piece, _ in pieces)))]
    model = models.BPE({token: i for i, token in enumerate(vocabulary)}, [], unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _around(tokenizer, special, around)


def _around(tokenizer: Tokenizer, special: Sequence[str], around: str) -> Tokenizer:
    tokenizer.add_special_tokens(list(special))
    named = [(token, tokenizer.token_to_id(token)) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=named)
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a tiny model of a family is made. `generation` is what its generation_config.json says besides.

    The seeds were looked for: of their models the likeliest tokens are clearly so, the answers are not all alike, and
    what float32 rounds away stays small.
    """

    seed: int
    config: type[Any]
    model: type[PreTrainedModel]
    tokenizer: Callable[[], Tokenizer]
    changes: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_t5(self) -> bool:
        """Whether its tensors have T5's names."""
        return self.config in (T5Config, MT5Config)


def _t5_characters() -> Tokenizer:
    return characters(_T5_SPECIAL, "$A </s>")


FAMILIES: Mapping[str, Family] = {
    "t5": Family(seed=8, config=T5Config, model=T5ForConditionalGeneration, tokenizer=_t5_characters),
    "t5-v1.1": Family(
        seed=24,
        config=T5Config,
        model=T5ForConditionalGeneration,
        tokenizer=_t5_characters,
        changes={"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "mt5": Family(
        seed=7,
        config=MT5Config,
        model=MT5ForConditionalGeneration,
        tokenizer=_t5_characters,
        changes={"tie_word_embeddings": False},
        generation={"repetition_penalty": 1.3},
    ),
    "bart": Family(
        seed=37,
        config=BartConfig,
        model=BartForConditionalGeneration,
        tokenizer=lambda: single_bytes(_BART_SPECIAL, "<s> $A </s>"),
        generation={"num_beams": 4, "no_repeat_ngram_size": 3, "early_stopping": True, "forced_eos_token_id": 2},
    ),
    "mbart": Family(
        seed=14,
        config=MBartConfig,
        model=MBartForConditionalGeneration,
        tokenizer=lambda: characters(_BART_SPECIAL, "$A </s> en_XX", ["de_DE", "en_XX", "ro_RO"]),
        changes={"scale_embedding": True},
        generation={"bad_words_ids": [[31], [32], [33]]},  # languages, unless one is forced
    ),
    "marian": Family(
        seed=39,
        config=MarianConfig,
        model=MarianMTModel,
        tokenizer=lambda: characters(["</s>", "<unk>"], "$A </s>", ["<pad>"]),
        changes={
            "scale_embedding": True,
            "activation_function": "swish",
            "eos_token_id": 0,
            "pad_token_id": 29,
            "decoder_start_token_id": 29,
        },
        generation={"num_beams": 3, "no_repeat_ngram_size": 3, "bad_words_ids": [[29]], "max_length": 16},
    ),
    "pegasus": Family(
        seed=2,
        config=PegasusConfig,
        model=PegasusForConditionalGeneration,
        tokenizer=lambda: characters(_T5_SPECIAL, "$A </s>"),
        changes={
            "scale_embedding": True,
            "activation_function": "relu",
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
        },
        generation={"num_beams": 2, "length_penalty": 0.8, "min_length": 5},
    ),
    "m2m-100": Family(
        seed=33,
        config=M2M100Config,
        model=M2M100ForConditionalGeneration,
        tokenizer=lambda: characters(_BART_SPECIAL, "__en__ $A </s>", ["__de__", "__en__", "__fr__"]),
        changes={"scale_embedding": True, "activation_function": "relu"},
        generation={"suppress_tokens": [3], "bad_words_ids": [[31], [32], [33]]},
    ),
}


def build(name: str, folder: Path) -> Path:
    """Write the tiny model of a family, and return its folder; its weights are always the same."""
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    fields = {**(_T5 if family.is_t5 else _BART), **family.changes, "vocab_size": tokenizer.get_vocab_size()}
    model: Any = family.model(family.config(**fields))
    if not fields.get("tie_word_embeddings", True):  # T5's classes tie at construction, whatever they are told
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    draw = _draw_t5 if family.is_t5 else _draw_bart
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.requires_grad:  # tables of sines are frozen
                parameter.copy_(torch.from_numpy(draw(family.seed, parameter_name, parameter.shape)))
        if hasattr(model, "final_logits_bias"):
            bias = drawn(family.seed, "final_logits_bias", model.final_logits_bias.shape, 0.5)
            model.final_logits_bias.copy_(torch.from_numpy(bias))
    model.save_pretrained(folder)
    generation = {
        "max_new_tokens": 16,
        **{key: fields[key] for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id")},
        **family.generation,
    }
    if "max_length" in generation:
        del generation["max_new_tokens"]
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return folder


def _draw_t5(seed: int, name: str, shape: Sequence[int]) -> Weights:
    """A tied output matrix makes a model repeat its own input: loud sublayers and a last norm of any sign keep it
    from that."""
    if name == "decoder.final_layer_norm.weight":
        return drawn(seed, name, shape, 1.0)
    if len(shape) == 1:
        return positive(seed, name, shape)
    if name.endswith("relative_attention_bias.weight"):
        return drawn(seed, name, shape, 2.0)
    if name in ("shared.weight", "lm_head.weight"):
        return drawn(seed, name, shape, 1.0)
    gain = 1.0
    if name.endswith((".o.weight", ".wo.weight")):
        gain = 2.0 if "EncDecAttention" in name else 4.0
    return drawn(seed, name, shape, gain * float(shape[1]) ** -0.5)


def _draw_bart(seed: int, name: str, shape: Sequence[int]) -> Weights:
    if name.endswith(("layer_norm.weight", "layernorm_embedding.weight")):
        return signed(seed, name, shape)
    if len(shape) == 1:
        return drawn(seed, name, shape, 0.2)
    if "embed" in name or "shared" in name:
        return drawn(seed, name, shape, 2.0 if "positions" in name else 1.0)
    gains = {"q_proj": 2.0, "k_proj": 2.0, "out_proj": 3.0, "fc2": 3.0}
    return drawn(seed, name, shape, gains.get(name.split(".")[-2], 1.5) * float(shape[1]) ** -0.5)


# What stays of a tiny T5: heads and feed-forward units of each encoder layer; then the decoder's only layer.
_ENCODER: Sequence[tuple[list[int], int]] = (([0, 2], 24), ([], 41), ([1], 0))
_SELF_HEADS, _CROSS_HEADS, _UNITS, _ORIGIN = [0, 1, 2], [0, 2], 30, 1


def build_pruned(dense: Path, folder: Path) -> Path:
    """Cut the tiny T5 in `dense` by hand into a compact model, as `nash prune` would write it."""
    folder.mkdir(parents=True)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((dense / name).read_bytes())
    config = json.loads((dense / "config.json").read_text())
    compact = {
        "model_type": "nash_t5",
        "architectures": ["NashT5ForConditionalGeneration"],
        "num_layers": len(_ENCODER),
        "num_decoder_layers": 1,
        "compact_encoder_layers": [{"heads": heads, "ffn": units} for heads, units in _ENCODER],
        "compact_decoder_layers": [
            {"self_heads": _SELF_HEADS, "cross_heads": _CROSS_HEADS, "ffn": _UNITS, "origin": _ORIGIN}
        ],
        "dense_encoder_layers": config["num_layers"],
        "dense_decoder_layers": config["num_decoder_layers"],
    }
    (folder / "config.json").write_text(json.dumps(config | compact, indent=2))
    weights = load_file(dense / "model.safetensors")
    save_file(dict(_cut(weights, config["d_kv"])), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _cut(weights: Mapping[str, Weights], head_dim: int) -> dict[str, Weights]:
    bias = "layer.0.SelfAttention.relative_attention_bias.weight"
    kept = {"shared.weight": weights["shared.weight"]}
    for stack in ("encoder", "decoder"):
        for name in (f"{stack}.block.0.{bias}", f"{stack}.final_layer_norm.weight"):
            kept[name] = weights[name]
    for i, (heads, units) in enumerate(_ENCODER):
        prefix = f"encoder.block.{i}.layer"
        kept |= _cut_attention(weights, f"{prefix}.0", f"{prefix}.0", "SelfAttention", heads, head_dim)
        kept |= _cut_units(weights, f"{prefix}.1", f"{prefix}.1", units)
    old, new = f"decoder.block.{_ORIGIN}.layer", "decoder.block.0.layer"
    kept |= _cut_attention(weights, f"{old}.0", f"{new}.0", "SelfAttention", _SELF_HEADS, head_dim)
    kept |= _cut_attention(weights, f"{old}.1", f"{new}.1", "EncDecAttention", _CROSS_HEADS, head_dim)
    kept |= _cut_units(weights, f"{old}.2", f"{new}.2", _UNITS)
    return {name: value.copy() for name, value in kept.items()}  # whole rows, one behind the other


def _cut_attention(
    weights: Mapping[str, Weights], old: str, new: str, kind: str, heads: Sequence[int], head_dim: int
) -> dict[str, Weights]:
    if not heads:
        return {}
    rows = [head * head_dim + i for head in heads for i in range(head_dim)]
    kept = {f"{new}.{kind}.{name}.weight": weights[f"{old}.{kind}.{name}.weight"][rows] for name in ("q", "k", "v")}
    kept[f"{new}.{kind}.o.weight"] = weights[f"{old}.{kind}.o.weight"][:, rows]
    return kept | {f"{new}.layer_norm.weight": weights[f"{old}.layer_norm.weight"]}


def _cut_units(weights: Mapping[str, Weights], old: str, new: str, units: int) -> dict[str, Weights]:
    if not units:
        return {}
    return {
        f"{new}.DenseReluDense.wi.weight": weights[f"{old}.DenseReluDense.wi.weight"][:units],
        f"{new}.DenseReluDense.wo.weight": weights[f"{old}.DenseReluDense.wo.weight"][:, :units],
        f"{new}.layer_norm.weight": weights[f"{old}.layer_norm.weight"],
    }
