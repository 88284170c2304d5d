"""Tiny random T5 checkpoints as plain Hugging Face directories, made in well under a second.

The vocabulary is three special tokens, the lower-case letters and the space; every character is one token.
"""

import json
import shutil
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import T5Config, T5ForConditionalGeneration

from model_store.model.config import layout_of, spec_of
from model_store.model.families import compact_model_type
from model_store.model.model import Model
from model_store.model.spec import DecoderLayerSpec, EncoderLayerSpec, ModelSpec

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
CHARACTERS = string.ascii_lowercase + " "
VOCABULARY = {
    "<pad>": PAD_ID,
    "</s>": EOS_ID,
    "<unk>": UNK_ID,
    **{c: i + 3 for i, c in enumerate(CHARACTERS)},
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}


def build_tokenizer() -> Tokenizer:
    """One token a character, the end token appended, decoding without blanks in between."""
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("."), behavior="isolated")
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS_ID)]
    )
    tokenizer.decoder = Fuse()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return tokenizer


def build_tiny_t5(
    directory: Path,
    *,
    seed: int = 0,
    encoder_layers: int = 4,
    decoder_layers: int = 3,
    d_model: int = 32,
    heads: int = 4,
    head_dim: int = 8,
    d_ff: int = 64,
    gated: bool = False,
    tied: bool = True,
) -> Path:
    """Write a random T5 with its tokenizer into `directory` and return it; equal arguments give equal files.

    The encoder is the deeper stack: transformers 5.23 sizes `generate`'s cache by the encoder's layers and
    fails where the decoder has more. `gated` with `tied=False` is the T5 v1.1 layout: gated GELU, an output
    matrix of its own, no scaling of the logits.
    """
    fields: dict[str, Any] = {
        "vocab_size": len(VOCABULARY),
        "d_model": d_model,
        "d_kv": head_dim,
        "d_ff": d_ff,
        "num_layers": encoder_layers,
        "num_decoder_layers": decoder_layers,
        "num_heads": heads,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "tie_word_embeddings": tied,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
        "decoder_start_token_id": PAD_ID,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(T5Config(**fields))
        if not tied:  # transformers 5 ties at construction whatever the config says
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                _draw(name, parameter)
    model.generation_config.max_new_tokens = 24
    model.save_pretrained(directory)
    build_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2))
    return directory


def _draw(name: str, parameter: torch.Tensor) -> None:
    """Fill one parameter so that greedy tokens vary with the source and along the output.

    A tied output matrix makes a random model repeat its own input token: louder sublayers and a final norm
    of random signs keep this one from it.
    """
    if name == "decoder.final_layer_norm.weight":
        parameter.normal_()
    elif parameter.dim() == 1:
        parameter.uniform_(0.5, 1.5)
    elif name.endswith("relative_attention_bias.weight"):
        parameter.normal_(std=2.0)
    elif name in ("shared.weight", "lm_head.weight"):
        parameter.normal_()
    elif name.endswith((".o.weight", ".wo.weight")):
        gain = 2.0 if "EncDecAttention" in name else 4.0
        parameter.normal_(std=gain * parameter.shape[1] ** -0.5)
    else:
        parameter.normal_(std=parameter.shape[1] ** -0.5)


def build_compact_t5(dense: Path, directory: Path) -> Path:
    """A tiny model of zeros, of ragged shape with an empty sublayer in each stack, cut from the one in `dense`."""
    shutil.copytree(dense, directory)
    config = json.loads((dense / "config.json").read_text())
    fields = dict(vars(spec_of(config)))
    fields["encoder"] = (
        EncoderLayerSpec(heads=(0, 2), ffn=10),
        EncoderLayerSpec(heads=(), ffn=64),
        EncoderLayerSpec(heads=(1,), ffn=0),
        EncoderLayerSpec(heads=(0, 1, 2, 3), ffn=1),
    )
    fields["decoder"] = (DecoderLayerSpec(self_heads=(0, 1, 2, 3), cross_heads=(), ffn=64, origin=2),)
    spec = ModelSpec(**fields)
    config |= spec.layer_config() | {"model_type": compact_model_type("t5"), "num_decoder_layers": 1}
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {name: torch.zeros(shape) for name, shape in layout_of(spec).shapes()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def model_without_files(name: str = "nowhere") -> Model:
    """A tiny T5's shape in a folder that is not there, for what reads no file."""
    config: dict[str, Any] = {"model_type": "t5", "vocab_size": len(VOCABULARY), "d_model": 32, "d_kv": 8, "d_ff": 64}
    config |= {"num_heads": 4, "num_layers": 2}
    return Model(folder=Path(name), config=config, spec=spec_of(config))
