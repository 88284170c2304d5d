"""Small tokenizers of every kind, trained on the same English text."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pydoc_data import topics
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from nash.vocabulary.tokenizer_file import document_of

SPECIAL = ("<pad>", "</s>", "<unk>")
VOCAB_SIZE = 700


@cache
def lines() -> tuple[str, ...]:
    """Lines of Python's manual."""
    found = (line.strip() for text in topics.topics.values() for line in text.splitlines())
    return tuple(dict.fromkeys(line for line in found if line))[:1500]


def unigram(special: tuple[str, ...] = SPECIAL, *, byte_fallback: bool = False) -> Tokenizer:
    """T5's kind, and that of newer SentencePiece models."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    single_bytes = [f"<0x{i:02X}>" for i in range(256)] if byte_fallback else []
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCAB_SIZE + len(single_bytes), special_tokens=[*special, *single_bytes], unk_token="<unk>"
    )
    tokenizer.train_from_iterator(lines(), trainer)
    document = json.loads(tokenizer.to_str())
    document["model"]["byte_fallback"] = byte_fallback
    document["added_tokens"] = document["added_tokens"][: len(special)]
    return Tokenizer.from_str(json.dumps(document))


def byte_level(special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """BART's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _bpe(tokenizer, special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def metaspace_bpe(special: tuple[str, ...] = SPECIAL) -> Tokenizer:
    """NLLB's kind."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return _bpe(tokenizer, special)


def _suffix_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder()
    return _bpe(tokenizer, SPECIAL, end_of_word_suffix="</w>")


def _prefix_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    return _bpe(tokenizer, SPECIAL, continuing_subword_prefix="##")


def _whole_words_first() -> Tokenizer:
    document = json.loads(byte_level().to_str())
    document["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(document))


def _bpe(tokenizer: Tokenizer, special: tuple[str, ...], **settings: Any) -> Tokenizer:
    tokenizer.train_from_iterator(
        lines(), trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=list(special), **settings)
    )
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCAB_SIZE, special_tokens=list(SPECIAL))
    tokenizer.train_from_iterator(lines(), trainer)
    return tokenizer


def _word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=VOCAB_SIZE, special_tokens=list(SPECIAL))
    tokenizer.train_from_iterator(lines(), trainer)
    return tokenizer


KINDS: Mapping[str, Callable[[], Tokenizer]] = {
    "unigram": unigram,
    "unigram, bytes": lambda: unigram(byte_fallback=True),
    "byte-level": byte_level,
    "byte-level, whole words first": _whole_words_first,
    "metaspace": metaspace_bpe,
    "suffix": _suffix_bpe,
    "prefix": _prefix_bpe,
    "word piece": _word_piece,
    "word level": _word_level,
}


@cache
def trained(kind: str) -> Tokenizer:
    """A tokenizer of a kind that ends every text; the special tokens are the first three."""
    tokenizer = KINDS[kind]()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def bpe_model(train: Callable[[tuple[str, ...]], Tokenizer], *special: str) -> dict[str, Any]:
    """Such a tokenizer's vocabulary and merges, as the classes of transformers take them."""
    model = document_of(train(special))["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}
