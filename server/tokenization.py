"""Text to tokens and back, through `tokenizers` alone: the API process holds no torch."""

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from server.errors import InvalidRequestError, StartError

# Shorter texts are encoded in microseconds, less than a hand-over to another thread takes.
_LONG_TEXT_CHARACTERS = 4096

_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")  # how a vocabulary with byte fallback writes single bytes


class TextCodec:
    """One model's tokenizer: sources in, generated tokens out."""

    def __init__(self, tokenizer: Tokenizer, eos_id: int) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._eos_id = eos_id
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special) | {eos_id}
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=False)
        self._byte_ids = frozenset(i for piece, i in vocabulary.items() if _BYTE_PIECE.fullmatch(piece))

    @classmethod
    def load(cls, directory: Path, eos_id: int) -> "TextCodec":
        """Read `tokenizer.json` in `directory`.

        Raises:
            StartError: there is none, or it cannot be read.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise StartError(f"{path} is missing: save the model with a fast tokenizer (save_pretrained writes it)")
        try:
            return cls(Tokenizer.from_file(str(path)), eos_id)
        except Exception as error:
            raise StartError(f"{path} is not a tokenizer: {error}") from error

    async def encode(self, text: str, *, where: str, limit_tokens: int, truncate: int | None) -> list[int]:
        """The source tokens of `text`, with those that the tokenizer puts around it and an end token.

        Args:
            where: the field that the text came from, for the message of an error.
            limit_tokens: the most tokens that the engine takes, those around the text included.
            truncate: keep so many tokens, those around the text included; None keeps all.

        Raises:
            InvalidRequestError: the text is empty, or longer than `limit_tokens`.
        """
        if len(text) > _LONG_TEXT_CHARACTERS:
            source = await asyncio.to_thread(self._encode, text)
        else:
            source = self._encode(text)
        if not source.body:
            raise InvalidRequestError(f"{where} is empty: give at least one character that is not white space")
        ids = source.whole(truncate)
        if len(ids) > limit_tokens:
            raise InvalidRequestError(
                f"{where} has {len(ids)} tokens, the model takes {limit_tokens}: "
                f'shorten it, or set "truncate": {limit_tokens} to use its beginning'
            )
        return ids

    def _encode(self, text: str) -> "_Source":
        encoding = self._tokenizer.encode(text)
        ids: list[int] = encoding.ids
        added: list[int] = encoding.special_tokens_mask  # 1 for what the tokenizer put around the text
        begin = next((i for i, special in enumerate(added) if not special), len(ids))
        end = next((i for i in range(len(ids), begin, -1) if not added[i - 1]), begin)
        if begin == len(ids):  # nothing but what is around a text: where it would have begun, nobody knows
            return _Source(before=[], body=[], after=ids)
        after = ids[end:]
        if self._eos_id not in after:
            end -= not after and ids[-1] == self._eos_id  # the text itself wrote it
            after = [*after, self._eos_id]
        return _Source(before=ids[:begin], body=ids[begin:end], after=after)

    def decode(self, ids: list[int]) -> str:
        """The text of generated tokens, special ones left out."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def is_special(self, token: int) -> bool:
        """Whether a token is part of no text: the end token, padding and such."""
        return token in self._special_ids

    def stream(self) -> "TextStream":
        """A decoder for one generation's tokens as they come."""
        return TextStream(self._tokenizer, self._byte_ids)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A text's tokens, and those around them: BART's are <s> and </s>, NLLB's a language and </s>."""

    before: list[int]
    body: list[int]
    after: list[int]

    def whole(self, most: int | None) -> list[int]:
        """All of it; where that is more than `most`, the text loses its end."""
        ids = [*self.before, *self.body, *self.after]
        if most is None or len(ids) <= most:
            return ids
        after = self.after[-most:]
        return [*ids[: most - len(after)], *after]


class TextStream:
    """Turns tokens into text one by one; the texts, joined, are the decoded whole.

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
        except Exception:  # noqa: BLE001 (tokenizers raises bare Exception where the text so far was no prefix)
            self._decoder = None
            return ""
        self._held = []
        self._text += text
        return text

    def finish(self, token: int) -> tuple[str, str]:
        """The text that the last token adds, with what was held back, and the whole text."""
        added = self.push(token)
        whole: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if not whole.startswith(self._text):
            return added, self._text  # what was sent cannot be called back
        return added + whole[len(self._text) :], whole
