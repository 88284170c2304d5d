"""The languages of a translation model, as clients of other servers name them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SHORT = re.compile(r"__([a-z]{2,8})__|([a-z]{2,3})_[A-Z]{2}")  # M2M100's __fr__, mBART's fr_XX; NLLB's fra_Latn stays

_NAMES = {
    "ar": "Arabic", "az": "Azerbaijani", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech",
    "da": "Danish", "de": "German", "el": "Greek", "en": "English", "eo": "Esperanto", "es": "Spanish",
    "et": "Estonian", "eu": "Basque", "fa": "Persian", "fi": "Finnish", "fr": "French", "ga": "Irish",
    "gl": "Galician", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian", "ms": "Malay", "nb": "Norwegian",
    "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "sk": "Slovak", "sl": "Slovenian", "sq": "Albanian", "sr": "Serbian", "sv": "Swedish", "th": "Thai",
    "tl": "Tagalog", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


def language_name(code: str) -> str:
    """A language's English name; the code itself where we have none."""
    return _NAMES.get(code, code)


@dataclass(frozen=True, kw_only=True)
class Languages:
    """What a model translates: between any two of many languages, each with a token, or from one to one other."""

    tokens: Mapping[str, int]  # by code; empty for a model of one pair, or of none
    pair: tuple[str, str] | None = None

    @classmethod
    def of(cls, named: Mapping[str, int], pair: tuple[str, str] | None) -> "Languages":
        """From a tokenizer's language tokens as it writes them; a `pair` makes them meaningless.

        Two tokens with one short code keep their long ones.
        """
        if pair is not None:
            return cls(tokens={}, pair=pair)
        shorts = [_short(token) for token in named]
        codes = {
            token if shorts.count(short) > 1 else short: number
            for (token, number), short in zip(named.items(), shorts, strict=True)
        }
        return cls(tokens=dict(sorted(codes.items())))

    @property
    def targets(self) -> dict[str, list[str]]:
        """By source, what it can be translated to."""
        if self.pair is not None:
            return {self.pair[0]: [self.pair[1]]}
        return {code: [other for other in self.tokens if other != code] for code in self.tokens}

    def translates(self, source: str, target: str) -> bool:
        """Whether it does."""
        if self.pair is not None:
            return (source, target) == self.pair
        return source != target and source in self.tokens and target in self.tokens


def _short(token: str) -> str:
    match = _SHORT.fullmatch(token)
    return token if match is None else match[1] or match[2]
