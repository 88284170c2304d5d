"""Read tokenizer.json, and write it with fewer tokens.

Text whose tokens are all kept is tokenized as before. What this requires depends on the model:

Unigram: a text's best path remains the best one if its pieces are kept, because competing paths can only disappear.
    A character without a piece costs a little more than the lowest score of the vocabulary, so the piece with that
    score stays.
BPE: a merge that was never applied in a word can be removed without effect. The applied merges produced the word's
    tokens or parts of them. So a kept token keeps all merges that make it, and the tokens that they join.
WordPiece: the longest piece that fits remains the longest. WordLevel: every word is looked up by itself.
"""

import copy
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from nash.errors import RequestError

Document = dict[str, Any]  # a parsed tokenizer.json

_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")  # a single byte in a vocabulary with byte fallback
_ASCII = frozenset(map(chr, range(0x21, 0x7F)))
_NUMBER = "\ue000number "  # marks a number whose digits are stored as text for a while
_VAST_SCRIPTS = frozenset({"CJK", "HANGUL"})  # thousands of characters each: keep only those that occur


def document_of(tokenizer: Tokenizer) -> Document:
    """The tokenizer as a parsed `tokenizer.json`.

    Raises:
        RequestError: it is of a kind that cannot be trimmed.
    """
    document: Document = json.loads(tokenizer.to_str())
    model = document["model"]
    if model["type"] not in ("Unigram", "BPE", "WordPiece", "WordLevel"):
        raise RequestError(f"a vocabulary of the type {model['type']!r} cannot be trimmed: leave trim_vocab out")
    if model.get("dropout"):
        raise RequestError(
            f"the tokenizer drops merges at random (dropout is {model['dropout']}), so the tokens a text needs "
            "are unknown: set model.dropout to null in tokenizer.json"
        )
    return document


def pieces_of(document: Document) -> dict[str, int]:
    """The ids of all pieces of the model, without added tokens."""
    vocabulary = document["model"]["vocab"]
    if document["model"]["type"] == "Unigram":
        return {piece: i for i, (piece, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def special_ids(document: Document) -> set[int]:
    """The tokens to keep in any case: added tokens, those put around a text, and those for unknown text."""
    model, pieces = document["model"], pieces_of(document)
    ids = {token["id"] for token in document["added_tokens"]} | set(_placed_ids(document))
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        ids.add(scores.index(min(scores)))
        if model["unk_id"] is not None:
            ids.add(model["unk_id"])
    elif model["unk_token"] in pieces:
        ids.add(pieces[model["unk_token"]])
    if model.get("byte_fallback"):
        ids |= {i for piece, i in pieces.items() if _BYTE_PIECE.fullmatch(piece)}
    return ids


def closed(document: Document, ids: Collection[int]) -> set[int]:
    """The tokens, and all tokens that they are merged from."""
    found, left = set(ids), list(ids)
    if document["model"]["type"] != "BPE":
        return found
    pieces = pieces_of(document)
    parents: dict[int, set[int]] = defaultdict(set)
    for first, second, whole in _merges(document["model"]):
        parents[pieces[whole]] |= {pieces[first], pieces[second]}
    while left:
        new = parents[left.pop()] - found
        found |= new
        left.extend(new)
    return found


def fallback_ids(document: Document, ids: Collection[int]) -> set[int]:
    """Single characters and bytes, for text that does not consist of the tokens `ids`.

    These are all bytes, ASCII, the characters in the tokens, and the letters of their scripts, except scripts with
    thousands of letters.
    """
    pieces, model = pieces_of(document), document["model"]
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    characters = {character for piece, i in pieces.items() if i in ids for character in piece}
    scripts = set(map(_script, characters)) - _VAST_SCRIPTS - {None}
    wanted = characters | _ASCII
    if _mentions(document["pre_tokenizer"], "ByteLevel"):
        wanted |= set(ByteLevel.alphabet())
    found = set()
    for piece, i in pieces.items():
        character = piece.removeprefix(prefix).removesuffix(suffix)
        if len(character) == 1 and (character in wanted or _script(character) in scripts):
            found.add(i)
    return found


def trimmed(document: Document, new_ids: Mapping[int, int]) -> Document:
    """The document with only the tokens in `new_ids`, under their new ids."""
    result = copy.deepcopy(document)
    model = result["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new_ids]
        if model["unk_id"] is not None:
            model["unk_id"] = new_ids[model["unk_id"]]
    else:
        model["vocab"] = {piece: new_ids[i] for piece, i in model["vocab"].items() if i in new_ids}
    if model["type"] == "BPE":
        kept = [all(piece in model["vocab"] for piece in merge) for merge in _merges(model)]
        model["merges"] = [merge for merge, stays in zip(model["merges"], kept, strict=True) if stays]
    for token in result["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    if result["padding"]:
        result["padding"]["pad_id"] = new_ids[result["padding"]["pad_id"]]
    for processor in _processors(result["post_processor"]):
        for place in ("sep", "cls"):
            if place in processor:
                processor[place][1] = new_ids[processor[place][1]]
        for token in processor.get("special_tokens", {}).values():
            token["ids"] = [new_ids[i] for i in token["ids"]]
    return result


def text_of(document: Document, original: str, kept: Iterable[int]) -> str:
    """The text of a trimmed document; `kept` are the ascending ids kept from the `original` text's tokens.

    Unigram scores are copied digit by digit from the original. tokenizers reads some 17-digit numbers with a wrong last
    bit and would write that value. transformers' classes read the numbers exactly, and the last bit decides between
    paths of equal scores.
    """
    if document["model"]["type"] != "Unigram":
        return json.dumps(document, ensure_ascii=False)
    written = json.loads(original, parse_float=str, parse_int=str)["model"]["vocab"]
    vocabulary = [[piece, f"{_NUMBER}{score}"] for piece, score in (written[i] for i in kept if i < len(written))]
    whole = {**document, "model": {**document["model"], "vocab": vocabulary}}
    return re.sub(f'"{_NUMBER}([^"]+)"', r"\1", json.dumps(whole, ensure_ascii=False))


def _placed_ids(document: Document) -> Iterator[int]:
    """Tokens that are put around a text, and the padding token."""
    if document["padding"]:
        yield document["padding"]["pad_id"]
    for processor in _processors(document["post_processor"]):
        for place in ("sep", "cls"):
            if place in processor:
                yield processor[place][1]
        for token in processor.get("special_tokens", {}).values():
            yield from token["ids"]


def _processors(processor: Document | None) -> Iterable[Document]:
    if processor is None:
        return ()
    if processor["type"] == "Sequence":
        return [single for each in processor["processors"] for single in _processors(each)]
    return (processor,)


def _merges(model: Document) -> Iterator[tuple[str, str, str]]:
    """Two pieces and the piece that they merge into."""
    prefix = model["continuing_subword_prefix"] or ""
    for first, second in model["merges"]:
        yield first, second, first + second.removeprefix(prefix)


def _mentions(part: Any, kind: str) -> bool:
    """Whether a part of the document is of this kind or contains one that is."""
    if isinstance(part, dict):
        return part.get("type") == kind or any(_mentions(each, kind) for each in part.values())
    return isinstance(part, list) and any(_mentions(each, kind) for each in part)


def _script(character: str) -> str | None:
    """The first word of a letter's Unicode name, which names its script; None for other characters."""
    if unicodedata.category(character)[0] not in "LM":
        return None
    return unicodedata.name(character, "").partition(" ")[0] or None
