"""A `tokenizer.json` for the tokenizers that transformers saves without one."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, M2M100Tokenizer, MarianTokenizer, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from nash.checkpoints.sentencepiece import read_model, sentencepiece_tokenizer
from nash.errors import RequestError


def fast_form(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Tokenizer:
    """What serving needs of a tokenizer that was loaded from `folder`: sources to tokens, tokens to text.

    The classes of T5, Pegasus, BART, mBART and NLLB contain it. Those of Marian, M2M100 and ByT5 are written in Python.

    Raises:
        RequestError: it cannot be expressed.
    """
    if tokenizer.is_fast:
        # A copy: from here on, neither the class's language nor its padding changes it.
        return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if isinstance(tokenizer, MarianTokenizer):
        return _marian(tokenizer, folder)
    if isinstance(tokenizer, M2M100Tokenizer):
        return _m2m100(tokenizer, folder)
    if isinstance(tokenizer, ByT5Tokenizer):
        return _byt5(tokenizer)
    raise RequestError(
        f"the tokenizer in {folder} is a {type(tokenizer).__name__}, which has no fast form: "
        "save a tokenizer.json beside it"
    )


def _marian(tokenizer: MarianTokenizer, folder: Path) -> Tokenizer:
    """A language such as `>>fra<<`, which MarianTokenizer reads at the beginning of a text, is a token anywhere."""
    if tokenizer.separate_vocabs:
        raise RequestError(
            f"the tokenizer in {folder} has a vocabulary for sources and another one for targets (separate_vocabs): "
            "one tokenizer.json holds only one; use a model with a shared vocabulary"
        )
    vocabulary = _vocabulary(folder)
    added = _added(tokenizer)
    for language in tokenizer.supported_language_codes:
        added.setdefault(vocabulary[language], AddedToken(language, normalized=False))
    around = f"$A {tokenizer.eos_token}"
    model = read_model(folder / "source.spm")
    return sentencepiece_tokenizer(model, vocabulary, added, unknown=tokenizer.unk_token, around=around)


def _m2m100(tokenizer: M2M100Tokenizer, folder: Path) -> Tokenizer:
    added = _added(tokenizer)
    for language, i in tokenizer.lang_token_to_id.items():  # special, as in the published models
        added[i] = AddedToken(language, normalized=False, special=True)
    around = f"{tokenizer.get_lang_token(tokenizer.src_lang)} $A {tokenizer.eos_token}"
    model = read_model(folder / "sentencepiece.bpe.model")
    return sentencepiece_tokenizer(model, _vocabulary(folder), added, unknown=tokenizer.unk_token, around=around)


def _byt5(tokenizer: ByT5Tokenizer) -> Tokenizer:
    """A byte's id is its value plus the number of tokens that precede the bytes."""
    added = _added(tokenizer)
    vocabulary = {letter: tokenizer.offset + byte for byte, letter in bytes_to_unicode().items()}
    vocabulary |= {token.content: i for i, token in added.items()}
    result = Tokenizer(models.BPE(vocabulary, [], unk_token=tokenizer.unk_token))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # Bytes that are not UTF-8 are left out, as by the class.
    result.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("\ufffd", "")])
    result.add_tokens([added[i] for i in sorted(added)])
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    result.post_processor = processors.TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    return result


def _added(tokenizer: PreTrainedTokenizerBase) -> dict[int, AddedToken]:
    """The tokens that the class finds in a text as a whole, by id; those that it never decodes are special."""
    special = set(tokenizer.all_special_tokens)
    return {
        i: AddedToken(
            token.content,
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=False,
            special=token.content in special,
        )
        for i, token in tokenizer.added_tokens_decoder.items()
    }


def _vocabulary(folder: Path) -> dict[str, int]:
    vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    return vocabulary
