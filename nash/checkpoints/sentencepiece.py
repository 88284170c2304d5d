"""A SentencePiece model whose pieces have the ids of a `vocab.json`, as a tokenizer of the library `tokenizers`.

MarianTokenizer and M2M100Tokenizer cut a text into pieces with SentencePiece and look each piece up in `vocab.json`;
pieces that it lacks are unknown. `tokenizers` knows no such map: the id of a Unigram piece is its place in the list. So
the list has the order of `vocab.json`, and its other entries, such as Marian's pieces of the target language, are
written between two marks that no text contains: they get ids and are decoded, but match nothing.

One kind of them does match. SentencePiece returns a run of characters that it does not know as one piece, and that may
be in `vocab.json`. If it is, the normalizer puts the marks around every such run.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from model_store.model.model import MARKS
from nash.errors import RequestError

_OPEN, _CLOSE = MARKS
_SPACE = "\u2581"  # SentencePiece writes a space as this
_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_NORMAL, _USER_DEFINED, _BYTE = 1, 4, 6  # ModelProto.SentencePiece.Type


def read_model(path: Path) -> Any:
    """A SentencePiece file, as the protocol buffer `ModelProto`.

    Raises:
        RequestError: the file is not a SentencePiece model, or one of a kind that `tokenizers` cannot express.
    """
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at run time
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:
        raise RequestError(f"{path} is not a SentencePiece model ({error}): copy the file again") from error
    if model.trainer_spec.model_type not in (_UNIGRAM, _BPE) or model.trainer_spec.treat_whitespace_as_suffix:
        raise RequestError(
            f"{path} is neither a Unigram nor a BPE model with spaces before words: no tokenizer.json can be made of it"
        )
    return model


def sentencepiece_tokenizer(
    model: Any, vocabulary: Mapping[str, int], added: Mapping[int, AddedToken], *, unknown: str, around: str
) -> Tokenizer:
    """A tokenizer that cuts texts as `model` does and numbers the pieces as `vocabulary` does.

    Args:
        added: tokens that are found in a text before it is cut, by id.
        unknown: the token of `vocabulary` for all pieces that it lacks.
        around: what stands around a text, as in `__en__ $A </s>`.
    """
    scores = dict(_scores(model))
    own = {token.content for token in added.values()} | {unknown}
    tokens = dict(vocabulary) | {token.content: i for i, token in added.items()}
    names = {i: token if token in scores or token in own else f"{_OPEN}{token}{_CLOSE}" for token, i in tokens.items()}
    bytes_too = model.trainer_spec.byte_fallback
    characters = {character for piece in scores for character in piece}
    if model.trainer_spec.model_type == _UNIGRAM:
        lowest = min(scores.values())
        entries = [(names.get(i, f"{_OPEN}{i}{_CLOSE}"), lowest) for i in range(max(names) + 1)]
        entries = [(name, scores.get(name, lowest)) for name, lowest in entries]
        tokenizer = Tokenizer(models.Unigram(entries, unk_id=tokens[unknown], byte_fallback=bytes_too))
    else:
        merges = list(_merges({piece: score for piece, score in scores.items() if piece in vocabulary}))
        pieces = {name: i for i, name in names.items()}
        tokenizer = Tokenizer(
            models.BPE(pieces, merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytes_too, ignore_merges=False)
        )
    foreign = any(not characters & set(token) for token in vocabulary if token not in own)
    tokenizer.normalizer = normalizers.Sequence(list(_normalizers(model, characters if foreign else None)))
    whole_words = not any(_SPACE in piece.strip(_SPACE) for piece in scores)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never", split=whole_words)
    tokenizer.decoder = decoders.Sequence(
        [
            *(decoders.Replace(mark, "") for mark in MARKS),
            decoders.Replace(_SPACE, " "),
            *([decoders.ByteFallback()] if bytes_too else []),
            decoders.Fuse(),
            decoders.Replace(Regex(r"\A\s+|\s+\z"), ""),
        ]
    )
    tokenizer.add_tokens([added[i] for i in sorted(added)])
    placed = [(token, tokens[token]) for token in around.split() if token != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=placed)
    return tokenizer


def _scores(model: Any) -> Iterator[tuple[str, float]]:
    """The pieces that can occur in a text, with their scores."""
    highest = max(piece.score for piece in model.pieces if piece.type == _NORMAL)
    for piece in model.pieces:
        if piece.type in (_NORMAL, _BYTE):
            yield piece.piece, piece.score
        elif piece.type == _USER_DEFINED:  # as in SentencePiece's unigram_model.cc: always the best path
            yield piece.piece, len(piece.piece) * highest - 0.1


def _merges(scores: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """SentencePiece merges the pair of neighbours whose union has the highest score."""
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        for cut in range(1, len(piece)):
            if piece[:cut] in scores and piece[cut:] in scores:
                yield piece[:cut], piece[cut:]


def _normalizers(model: Any, characters: set[str] | None) -> Iterator[normalizers.Normalizer]:
    """What SentencePiece does to a text; with `characters`, marks around each run of other characters."""
    spec = model.normalizer_spec
    if spec.precompiled_charsmap:
        charsmap = normalizers.Precompiled(spec.precompiled_charsmap)
        if charsmap.normalize_str("e\u0301") == "\u00e9":
            # It composes letters, but `tokenizers` looks up five bytes at most: too few for Hangul and Vietnamese.
            yield normalizers.NFC()
        yield charsmap
    yield normalizers.Replace(Regex(f"[{_OPEN}{_CLOSE}]"), "\ufffd")
    if spec.remove_extra_whitespaces:
        yield normalizers.Replace(Regex(r"\A +| +\z"), "")
        yield normalizers.Replace(Regex(" +"), _SPACE)
    else:
        yield normalizers.Replace(" ", _SPACE)
    if spec.add_dummy_prefix:
        yield normalizers.Prepend(_SPACE)
    if characters is not None:
        known = "".join(f"\\x{{{ord(character):x}}}" for character in sorted(characters))
        yield normalizers.Replace(Regex(f"(?<![^{known}])(?=[^{known}])"), _OPEN)
        yield normalizers.Replace(Regex(f"(?<=[^{known}])(?![^{known}])"), _CLOSE)
