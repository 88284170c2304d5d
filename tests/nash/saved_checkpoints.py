"""Tiny checkpoints with tokenizers of transformers' own classes, in the files in which checkpoints are published.

The vocabularies are trained on Python's manual. Where a class of transformers 5 would write a tokenizer.json, the
folder has the files that its predecessor in version 4 wrote, as on the hub: a SentencePiece model, or vocab.json and
merges.txt.
"""

import io
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    ByT5Tokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

from tests.nash.task_tokenizers import lines

PIECES = 300
_FOREIGN = str.maketrans({"a": "ä", "o": "ö", "e": "é", "s": "ß"})  # letters that the sources do not have


def source_lines() -> tuple[str, ...]:
    """What the sources' vocabulary is trained on."""
    return lines()[:600]


def target_lines() -> list[str]:
    """What the targets' vocabulary is trained on: other letters too."""
    return [line.translate(_FOREIGN) for line in source_lines()]


def train(path: Path, texts: Sequence[str], **options: Any) -> Path:
    """Train a SentencePiece model and write it to `path`."""
    path.write_bytes(_trained(tuple(texts), tuple(sorted(options.items()))))
    return path


@cache
def _trained(texts: tuple[str, ...], options: tuple[tuple[str, Any], ...]) -> bytes:
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=file,
        vocab_size=PIECES,
        seed_sentencepiece_size=2000,
        minloglevel=2,
        num_threads=1,
        **dict(options),
    )
    return file.getvalue()


def pieces(path: Path) -> list[str]:
    """All pieces of a SentencePiece model but unknown and control ones."""
    model = sentencepiece.SentencePieceProcessor(str(path))
    ids = range(model.get_piece_size())
    return [model.id_to_piece(i) for i in ids if not (model.is_unknown(i) or model.is_control(i))]


def marian_files(folder: Path) -> Path:
    """A Marian tokenizer: one vocabulary of both languages' pieces, in an order of its own, and two language codes."""
    made = folder.with_name(f"{folder.name}-made")
    made.mkdir(parents=True)
    ids = {"unk_id": 1, "eos_id": 0, "bos_id": -1}
    source, target = (
        train(made / name, texts, **ids)
        for name, texts in (("source.spm", source_lines()), ("target.spm", target_lines()))
    )
    both = list(dict.fromkeys([*pieces(source), *pieces(target)]))
    random.Random(0).shuffle(both)
    tokens = ["</s>", "<unk>", *both, ">>deu<<", ">>fra<<", "<pad>"]
    (made / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    tokenizer = MarianTokenizer(
        str(source), str(target), str(made / "vocab.json"), source_lang="eng", target_lang="deu"
    )
    tokenizer.save_pretrained(folder)
    return folder


def m2m100_files(folder: Path, kind: str = "bpe") -> Path:
    """An M2M100 tokenizer from French to German; the ids are not those of the SentencePiece model."""
    made = folder.with_name(f"{folder.name}-made")
    made.mkdir(parents=True)
    model = train(made / "sentencepiece.bpe.model", source_lines(), model_type=kind)
    shuffled = pieces(model)
    random.Random(0).shuffle(shuffled)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *shuffled]
    (made / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    languages = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
    tokenizer = M2M100Tokenizer(
        str(made / "vocab.json"), str(model), src_lang="fr", tgt_lang="de", additional_special_tokens=languages
    )
    tokenizer.save_pretrained(folder)
    return folder


def byt5_files(folder: Path) -> Path:
    """A ByT5 tokenizer, which has no vocabulary in a file."""
    ByT5Tokenizer().save_pretrained(folder)
    return folder


def sentencepiece_files(name: str, settings: Mapping[str, Any], **options: Any) -> Callable[[Path], Path]:
    """A tokenizer whose only file is a SentencePiece model."""

    def write(folder: Path) -> Path:
        folder.mkdir(parents=True)
        train(folder / name, source_lines(), **options)
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return write


def bart_files(folder: Path) -> Path:
    """A BART tokenizer as a vocabulary and merges."""
    folder.mkdir(parents=True)
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(source_lines(), vocab_size=PIECES + 5, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BartTokenizer"}))
    return folder


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """How to build a family's checkpoint."""

    model: type[PreTrainedModel]
    config: type[Any]
    tokenizer: Callable[[Path], Path]
    vocab_size: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)


_T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
_BART = {
    "d_model": 16,
    **{f"{stack}_{name}": value for stack in ("encoder", "decoder")
       for name, value in {"layers": 2, "attention_heads": 2, "ffn_dim": 24}.items()},
    "max_position_embeddings": 64,
}  # fmt: skip
_IDS = {"unk_id": 2, "pad_id": 0, "eos_id": 1, "bos_id": -1}  # T5's and Pegasus's
_LANGUAGES = len(FAIRSEQ_LANGUAGE_CODES["m2m100"])

CHECKPOINTS = {
    "marian": Checkpoint(
        model=MarianMTModel,
        config=MarianConfig,
        tokenizer=marian_files,
        vocab_size=0,  # as its vocab.json
        fields={**_BART, "eos_token_id": 0},
    ),
    "m2m100": Checkpoint(
        model=M2M100ForConditionalGeneration,
        config=M2M100Config,
        tokenizer=m2m100_files,
        vocab_size=PIECES + 1 + _LANGUAGES + 8,  # <pad> is no piece; eight rows without tokens, as the published ones
        fields={**_BART, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
        generation={"forced_bos_token_id": PIECES + 1 + FAIRSEQ_LANGUAGE_CODES["m2m100"].index("de")},
    ),
    "byt5": Checkpoint(
        model=T5ForConditionalGeneration,
        config=T5Config,
        tokenizer=byt5_files,
        vocab_size=384,
        fields={**_T5, "feed_forward_proj": "gated-gelu"},
    ),
    "t5": Checkpoint(
        model=T5ForConditionalGeneration,
        config=T5Config,
        tokenizer=sentencepiece_files("spiece.model", {"tokenizer_class": "T5Tokenizer", "extra_ids": 10}, **_IDS),
        vocab_size=PIECES + 20,
        fields=_T5,
    ),
    "pegasus": Checkpoint(
        model=PegasusForConditionalGeneration,
        config=PegasusConfig,
        tokenizer=sentencepiece_files("spiece.model", {"tokenizer_class": "PegasusTokenizer"}, **_IDS),
        vocab_size=PIECES + 110,
        fields={**_BART, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    ),
    "mbart": Checkpoint(
        model=MBartForConditionalGeneration,
        config=MBartConfig,
        tokenizer=sentencepiece_files(
            "sentencepiece.bpe.model",
            {"tokenizer_class": "MBartTokenizer", "src_lang": "en_XX", "tgt_lang": "ro_RO"},
        ),
        vocab_size=PIECES + 40,
        fields={**_BART, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": None},
    ),
    "bart": Checkpoint(
        model=BartForConditionalGeneration,
        config=BartConfig,
        tokenizer=bart_files,
        vocab_size=PIECES + 5,
        fields={**_BART, "decoder_start_token_id": 2, "forced_eos_token_id": 2},
    ),
}


def build_checkpoint(family: str, folder: Path) -> Path:
    """Write a family's random model and its tokenizer into a new folder."""
    case = CHECKPOINTS[family]
    case.tokenizer(folder)
    shutil.rmtree(folder.with_name(f"{folder.name}-made"), ignore_errors=True)
    fields, size = dict(case.fields), case.vocab_size
    if family == "marian":
        vocabulary = json.loads((folder / "vocab.json").read_text())
        size, pad = len(vocabulary), vocabulary["<pad>"]
        fields |= {"pad_token_id": pad, "decoder_start_token_id": pad, "decoder_vocab_size": size}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = case.model(case.config(vocab_size=size, dropout=0.0, dropout_rate=0.0, **fields))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:  # tables of sines are frozen
                    _draw(name, parameter)
    # A random model whose matrices are tied repeats its own input, unless it must not.
    settings = {"max_length": None, "max_new_tokens": 8, "num_beams": 1, "no_repeat_ngram_size": 1}
    model.generation_config.update(**settings, **case.generation)
    model.save_pretrained(folder)
    return folder


def _draw(name: str, parameter: torch.Tensor) -> None:
    """Loud sublayers and norms of any sign, for answers that depend on the source."""
    if name.endswith("norm.weight"):
        parameter.uniform_(0.5, 1.5).mul_(torch.randint(0, 2, parameter.shape) * 2 - 1)
    elif parameter.dim() == 1:
        parameter.normal_(std=0.2)
    elif "embed" in name or "shared" in name or "lm_head" in name or "relative" in name:
        parameter.normal_()
    else:
        gain = 3.0 if name.endswith((".o.weight", ".wo.weight", "out_proj.weight", "fc2.weight")) else 1.5
        parameter.normal_(std=gain * parameter.shape[1] ** -0.5)
