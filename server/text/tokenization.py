"""Text to tokens and back, using only `tokenizers`: the API process does not load torch."""

import asyncio
import json
import os
import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from tokenizers import Encoding, Tokenizer
from tokenizers.decoders import DecodeStream

from model_store.model.model import MARKS
from server.errors import InvalidInputError, StartError
from server.text.languages import Languages
from server.text.splitting import TextPiece, fitting, sentences, windows

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the other cores are the engine's

# So few are encoded in a millisecond, about what a handover to another thread may cost.
_SHORT_CHARACTERS = 1024
_threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenize")  # a flood of long texts waits for these

_WINDOW_CHARACTERS_PER_TOKEN = 8  # read for one window of a text that is split
_MOST_CHARACTERS_PER_TOKEN = 32  # white space and rare scripts aside, a token has four to six
_LEAST_CHARACTERS = 4096

_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")  # how a vocabulary with byte fallback writes single bytes
_LANGUAGE = re.compile("__[a-z]{2,8}__|[a-z]{2,3}_[A-Za-z]{2,4}")  # M2M100's __fr__; mBART's fr_XX, NLLB's fra_Latn
_NAMED_LANGUAGES = 8  # how many an error message lists


def most_characters(limit_tokens: int) -> int:
    """How many characters are read for so many tokens. Without a bound, a long text would be tokenized in vain."""
    return max(_LEAST_CHARACTERS, _MOST_CHARACTERS_PER_TOKEN * limit_tokens)


Split = Literal["sentences", "windows"]


class TextCodec:
    """One model's tokenizer: sources in, generated tokens out."""

    def __init__(self, tokenizer: Tokenizer, eos_id: int, pair: tuple[str, str] | None = None) -> None:
        """`pair`: the languages of a model that translates from one to one other."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._eos_id = eos_id
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special) | {eos_id}
        self._languages = {str(token.content): i for i, token in added.items() if _LANGUAGE.fullmatch(token.content)}
        self.languages = Languages.of(self._languages, pair)
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=False)
        self._byte_ids = frozenset(i for piece, i in vocabulary.items() if _BYTE_PIECE.fullmatch(piece))

    @classmethod
    def load(cls, directory: Path, eos_id: int) -> "TextCodec":
        """Read `tokenizer.json` in `directory`.

        Raises:
            StartError: the file is missing or cannot be read.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise StartError(f"{path} is missing: save the model with a fast tokenizer (save_pretrained writes it)")
        try:
            return cls(Tokenizer.from_file(str(path)), eos_id, _pair(directory / "tokenizer_config.json"))
        except Exception as error:
            raise StartError(f"{path} is not a tokenizer: {error}") from error

    async def encode(
        self,
        texts: Sequence[str],
        *,
        fields: Sequence[str],
        limit_tokens: int,
        truncate: int | None,
        language: int | None = None,
    ) -> list["EncodedText"]:
        """The source tokens of each text, with the tokenizer's special tokens around it and an end token.

        Args:
            fields: where each text came from, for error messages.
            limit_tokens: the most tokens that the engine accepts, including those around the text.
            truncate: keep this many tokens, including those around the text; None keeps all.
            language: replaces the tokenizer's own language token; None keeps that.

        Raises:
            InvalidInputError: a text is empty, or longer than `limit_tokens`.
        """
        most = most_characters(limit_tokens)
        if truncate is not None:
            texts = [text[:most] for text in texts]
        for text, where in zip(texts, fields, strict=True):
            if len(text) > most:
                raise InvalidInputError(
                    f"{where} has {len(text)} characters, but the model takes at most {limit_tokens} tokens, and no "
                    f'more than {most} characters are read for them: shorten it, or set "truncate": {limit_tokens} '
                    "to use its beginning"
                )
        sources = []
        encodings = await self._encodings(texts, add_special_tokens=True)
        for encoding, where in zip(encodings, fields, strict=True):
            source = self._parts(encoding)
            if not source.body:
                raise InvalidInputError(f"{where} is empty: give at least one character that is not white space")
            if language is not None:
                source = source.in_language(language, self._languages.values())
            ids = source.whole(truncate)
            cut = len(source.whole(None)) - len(ids)
            if len(ids) > limit_tokens:
                raise InvalidInputError(
                    f"{where} has {len(ids)} tokens, but the model takes at most {limit_tokens}: "
                    f'shorten it, or set "truncate": {limit_tokens} to use its beginning'
                )
            sources.append(EncodedText(ids=ids, truncated=cut))
        return sources

    async def pieces(self, texts: Sequence[str], *, fields: Sequence[str], limit_tokens: int) -> list[list["Piece"]]:
        """The tokens of each text and where they stand in it, those that the tokenizer puts around it included.

        Raises:
            InvalidInputError: a text has more characters than are read for `limit_tokens`; it may have more tokens.
        """
        most = most_characters(limit_tokens)
        for text, where in zip(texts, fields, strict=True):
            if len(text) > most:
                raise InvalidInputError(f"{where} has {len(text)} characters: send at most {most} at once")
        found = []
        for text, encoding in zip(texts, await self._encodings(texts, add_special_tokens=True), strict=True):
            pieces = []
            for token, (start, stop), around in zip(
                encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True
            ):
                shown = self.piece(token) if around else text[start:stop]
                pieces.append(Piece(id=token, text=shown, start=start, stop=stop))
            found.append(pieces)
        return found

    async def split(self, text: str, how: Split, limit_tokens: int, most: int) -> list[TextPiece]:
        """A text in pieces that the model takes: its sentences, or windows as long as fit; in another thread.

        No more than `most` are made: whoever gets so many refuses the text.
        """
        room = partial(self._room, limit_tokens=limit_tokens)

        def work() -> list[TextPiece]:
            return list(islice(windows(text, room) if how == "windows" else fitting(sentences(text), room), most))

        if len(text) <= _SHORT_CHARACTERS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(_threads, work)

    def _room(self, text: str, limit_tokens: int) -> int:
        """How many characters of the beginning of a text have at most so many tokens, with those around them."""
        stop = min(len(text), _WINDOW_CHARACTERS_PER_TOKEN * limit_tokens)
        while stop > 0:
            [encoding] = self._tokenizer.encode_batch([text[:stop]])
            source = self._parts(encoding)
            over = len(source.whole(None)) - limit_tokens
            if over <= 0:
                return stop
            body = [
                end
                for (_, end), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
                if not special
            ]
            kept = body[: max(0, len(body) - over)]
            stop = min(stop - 1, kept[-1] if kept else 0)
        return 0

    async def _encodings(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Encoding]:
        """Only `encode_batch` lets other threads run meanwhile."""
        encode = partial(self._tokenizer.encode_batch, list(texts), add_special_tokens=add_special_tokens)
        if sum(map(len, texts)) <= _SHORT_CHARACTERS:
            return list(encode())
        return list(await asyncio.get_running_loop().run_in_executor(_threads, encode))

    def _parts(self, encoding: Encoding) -> "_Source":
        ids: list[int] = encoding.ids
        added: list[int] = encoding.special_tokens_mask  # 1 for what the tokenizer put around the text
        begin = next((i for i, special in enumerate(added) if not special), len(ids))
        end = next((i for i in range(len(ids), begin, -1) if not added[i - 1]), begin)
        if begin == len(ids):  # only the tokens around a text: where the text would begin is unknown
            return _Source(before=[], body=[], after=ids)
        after = ids[end:]
        if self._eos_id not in after:
            end -= not after and ids[-1] == self._eos_id  # the text itself wrote it
            after = [*after, self._eos_id]
        return _Source(before=ids[:begin], body=ids[begin:end], after=after)

    async def encode_prefix(self, text: str, *, where: str, limit_tokens: int) -> list[int]:
        """The tokens of a text for the decoder to continue, with nothing around them.

        Raises:
            InvalidInputError: it has more characters than `limit_tokens` tokens could have.
        """
        most = most_characters(limit_tokens)
        if len(text) > most:
            raise InvalidInputError(f"{where} has {len(text)} characters: give at most {most}")
        [encoding] = await self._encodings([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def token_id(self, token: str, *, where: str) -> int:
        """The id of a token, given as the vocabulary writes it or as a language code.

        Raises:
            InvalidInputError: there is no such token or language.
        """
        ids = (self._languages.get(token), self._languages.get(f"__{token}__"), self._tokenizer.token_to_id(token))
        found: int | None = next((each for each in ids if each is not None), None)
        if found is None:
            raise InvalidInputError(
                f"{where} is not a token of this model's tokenizer: write it as the vocabulary does"
                f"{', or give a language: ' + self._some_languages() if self._languages else ''}"
            )
        return found

    def language_id(self, code: str, *, where: str) -> int:
        """The token id of a language, by its code as the model writes it; M2M100's also without the underscores.

        Raises:
            InvalidInputError: there is no such language.
        """
        if not self._languages:
            raise InvalidInputError(
                f"{where} is given, but this model's tokenizer has no languages: leave it out, and name the language "
                "in the text if the model expects that"
            )
        found = self._languages.get(code, self._languages.get(f"__{code}__"))
        if found is None:
            raise InvalidInputError(f"{where} is not a language of this model: use {self._some_languages()}")
        return found

    def _some_languages(self) -> str:
        codes = sorted(self._languages)
        return ", ".join(codes[:_NAMED_LANGUAGES]) + (" or another of its" if len(codes) > _NAMED_LANGUAGES else "")

    def decode(self, ids: Sequence[int], prefix: Sequence[int] = ()) -> str:
        """The text that generated tokens add to the decoder's prefix, without special tokens."""
        if prefix and ids:
            stream = self.stream(prefix)
            texts = [stream.push(token) for token in ids[:-1]]
            return "".join([*texts, stream.finish(ids[-1])])
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def decode_one(self, token: int, before: int | None) -> str:
        """The text of one token when it follows `before` (None: at the start of a text). A special token has none."""
        if before is None:
            return self.decode([token])
        both, alone = self.decode([before, token]), self.decode([before])
        return both[len(alone) :] if both.startswith(alone) else self.decode([token])

    def piece(self, token: int) -> str:
        """A token as the vocabulary writes it, or its id if the vocabulary does not have it."""
        piece: str = self._tokenizer.id_to_token(token) or str(token)
        return piece.strip("".join(MARKS))

    def is_special(self, token: int) -> bool:
        """Whether a token is never part of a text, such as the end token or padding."""
        return token in self._special_ids

    def stream(self, prefix: Sequence[int] = ()) -> "TextStream":
        """A decoder for one generation's tokens as they arrive. It does not return the prefix's text."""
        stream = TextStream(self._tokenizer, self._byte_ids)
        for token in prefix:
            stream.push(token)
        return stream


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """A source's tokens, and how many of those read were cut from its end."""

    ids: list[int]
    truncated: int = 0


def _pair(path: Path) -> tuple[str, str] | None:
    """The languages that a Marian's tokenizer names."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        source, target = config.get("source_lang"), config.get("target_lang")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return (source, target) if isinstance(source, str) and isinstance(target, str) and source and target else None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One token of a text, and where it stands there: from `start` to `stop`, in characters."""

    id: int
    text: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A text's tokens and those around them: <s> and </s> for BART, a language and </s> for NLLB."""

    before: list[int]
    body: list[int]
    after: list[int]

    def in_language(self, language: int, languages: Collection[int]) -> "_Source":
        """A copy with the language token around it replaced; unchanged if the tokenizer adds none."""
        before, after = (
            [language if token in languages else token for token in around] for around in (self.before, self.after)
        )
        return replace(self, before=before, after=after)

    def whole(self, most: int | None) -> list[int]:
        """All its tokens; if there are more than `most`, the end of the text is cut."""
        ids = [*self.before, *self.body, *self.after]
        if most is None or len(ids) <= most:
            return ids
        after = self.after[-most:]
        return [*ids[: most - len(after)], *after]


class TextStream:
    """Turns tokens into text one by one; the joined texts are the decoded whole.

    A token that ends in the middle of a character has the text ""; the character comes with a later token.
    """

    def __init__(self, tokenizer: Tokenizer, byte_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._byte_ids = byte_ids
        self._decoder: DecodeStream | None = DecodeStream(skip_special_tokens=True)
        self._held: list[int] = []  # a run of single bytes: one bad byte changes how the whole run is shown
        self._ids: list[int] = []
        self._text = ""

    def push(self, token: int) -> str:
        """The text that `token` adds."""
        self._ids.append(token)
        self._held.append(token)
        if self._decoder is None or token in self._byte_ids:
            return ""
        try:
            text: str = self._decoder.step(self._tokenizer, self._held) or ""
        except Exception:  # noqa: BLE001 (tokenizers raises bare Exception if the text so far was not a prefix)
            self._decoder = None
            return ""
        self._held = []
        self._text += text
        return text

    def finish(self, token: int) -> str:
        """The text that the last token adds, plus any text held back."""
        added = self.push(token)
        whole: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if not whole.startswith(self._text):
            return added  # what was sent cannot be taken back
        return added + whole[len(self._text) :]
