"""A small tokenizer of T5's kind: unigram pieces, with bytes for what none of them covers."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1 and 2, as T5 has them
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_SPACE = "\u2581"


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, *, lower_case: bool = False) -> Tokenizer:
    """A tokenizer of `vocabulary_size` tokens, specials and bytes included, for texts like these.

    Every text can be read and is given back as it was, except that runs of white space become one space and, with
    `lower_case`, capitals become small letters.
    """
    tokenizer = Tokenizer(models.Unigram())
    cleaning = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence([*cleaning, normalizers.Lowercase()] if lower_case else cleaning)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary_size - len(BYTES),
        special_tokens=[PAD, END, UNKNOWN],
        unk_token=UNKNOWN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer knows nothing of bytes. They stand behind the specials and are no special tokens themselves, or a
    # decoder told to skip those would lose them.
    state = json.loads(tokenizer.to_str())
    pieces: list[tuple[str, float]] = [(piece, score) for piece, score in state["model"]["vocab"]]
    vocabulary = [*pieces[:3], *((byte, 0.0) for byte in BYTES), *pieces[3:]]
    tokenizer.model = models.Unigram(vocabulary, unk_id=2, byte_fallback=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, longest: int) -> None:
    """Write `tokenizer.json` and the lines of configuration that AutoTokenizer wants beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
