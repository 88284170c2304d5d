"""How one generation is decoded: each parameter declared once.

A declaration is a field of `GenerationParameters`: its name, its default, its allowed values, and its key in a model's
generation_config.json. Everything else is derived from it: the request schema (`server.frontend.requests.parameters`),
a model's defaults (`generation_config`), the engine's checks (`validation`). Only a parameter's effect is written
elsewhere, in one place.
"""

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

LARGEST_COUNT = 2**31 - 1

Kind = Literal["count", "number", "flag", "early stopping", "token", "tokens", "token sequences"]


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What is known about a parameter besides its name and its default."""

    kind: Kind
    about: str = ""  # help for the author of a request; "" if the name says it
    least: float | None = None
    above: float | None = None  # the value must be larger
    most: float | None = None
    below: float | None = None  # the value must be smaller
    remedy: str = ""  # what to do instead of giving a disallowed value
    in_requests: bool = False
    samples: bool = False  # giving it in a request asks for sampling
    key: str | None = None  # in generation_config.json; None: not read from there
    unset: Any = None  # what a file means by not naming it; None: the default

    def problem(self, value: Any) -> str | None:
        """What is wrong with the value of a count or a number, and what it must be; None if it is valid."""
        fits = (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )
        if fits and (isinstance(value, int) or math.isfinite(value)):
            return None
        return f"is {reprlib.repr(_plain(value))[1:-1]}: it must be {self.rule}{self.remedy}"

    @property
    def rule(self) -> str:
        """The allowed values, in words."""
        what = "a whole number" if self.kind == "count" else "a number"
        low = self.least if self.least is not None else self.above
        if low is None and self.most is None:
            return what
        most = None if self.most == LARGEST_COUNT else self.most if self.below is None else self.below - 1
        if self.least is not None and most is not None:
            return f"{what} from {_plain(self.least)} to {_plain(most)}"
        lower = f"above {self.above:g}" if self.least is None else f"of at least {self.least:g}"
        return f"{what} {lower}" if most is None else f"{what} {lower} and at most {_plain(most)}"


def _plain(number: float) -> str:
    """All digits of a whole number."""
    return str(number) if isinstance(number, int) else f"{number:.12g}"


def _declared(default: Any, declaration: Declaration) -> Any:
    return field(default=default, metadata={"declaration": declaration})


def _count(default: Any = dataclasses.MISSING, *, least: int = 0, **rest: Any) -> Any:
    most = None if "below" in rest else rest.pop("most", LARGEST_COUNT)
    return _declared(default, Declaration(kind="count", least=least, most=most, **rest))


def _number(default: float, **rest: Any) -> Any:
    return _declared(default, Declaration(kind="number", **rest))


def _flag(default: bool = False, **rest: Any) -> Any:
    return _declared(default, Declaration(kind="flag", **rest))


def _tokens(key: str | None = None, kind: Kind = "tokens") -> Any:
    return _declared((), Declaration(kind=kind, key=key))


@dataclass(frozen=True, kw_only=True)
class GenerationParameters:
    """Names and effects are those of transformers, if it has the parameter. The defaults change nothing: greedy.

    A model's own generation_config.json comes in through `GenerationDefaults`.
    """

    max_new_tokens: int = _count(
        least=1,
        in_requests=True,
        key="max_new_tokens",
        about="the longest answer; at most what the model is loaded for",
    )
    min_new_tokens: int = _count(
        0, in_requests=True, key="min_new_tokens", about="the end token cannot come before this many others"
    )
    ignore_eos: bool = _flag()  # always continue to max_new_tokens: forced lengths, for measurements
    prefix_ids: tuple[int, ...] = _tokens()  # follow the decoder's start token; the answer continues them

    do_sample: bool = _flag(
        in_requests=True,
        key="do_sample",
        about="implied by temperature, top_k, top_p and typical_p; false turns them off",
    )
    # Scores divided by less than `least` overflow float32.
    temperature: float = _number(
        1.0,
        above=0,
        least=1e-30,
        remedy=", or leave it out for the likeliest tokens",
        in_requests=True,
        samples=True,
        key="temperature",
        about="divides the scores before a token is drawn: below 1 favours likely tokens",
    )
    # transformers falls back on 50 where a model says nothing: its one default that is not neutral.
    top_k: int = _count(
        0,
        in_requests=True,
        samples=True,
        key="top_k",
        unset=50,
        about="draw from this many of the likeliest tokens; 0 means all",
    )
    top_p: float = _number(
        1.0,
        above=0,
        most=1,
        in_requests=True,
        samples=True,
        key="top_p",
        about="draw from the likeliest tokens that together have this probability",
    )
    typical_p: float = _number(
        1.0,
        above=0,
        most=1,
        in_requests=True,
        samples=True,
        key="typical_p",
        about="draw from the most typical tokens that together have this probability (locally typical sampling)",
    )
    seed: int | None = _count(  # None: drawn at admission
        None,
        below=2**64,
        in_requests=True,
        about="the same seed gives the same texts; if left out, one is drawn, and details report it",
    )

    num_beams: int = _count(
        1,
        least=1,
        in_requests=True,
        key="num_beams",
        about="beams of the search, at most the model's slots",
    )
    length_penalty: float = _number(
        1.0,
        least=-10,
        most=10,
        in_requests=True,
        key="length_penalty",
        about="a beam's score is divided by its length to this power: above 0 favours long answers",
    )
    early_stopping: bool | Literal["never"] = _declared(
        False,
        Declaration(
            kind="early stopping",
            in_requests=True,
            key="early_stopping",
            about="when the beam search ends, as in transformers",
        ),
    )
    num_return_sequences: int = _count(
        1, least=1, in_requests=True, key="num_return_sequences", about="return this many beams or samples, best first"
    )

    repetition_penalty: float = _number(
        1.0,
        least=1e-6,
        most=1e6,
        in_requests=True,
        key="repetition_penalty",
        about="above 1 makes tokens that were generated before less likely, below 1 more likely",
    )
    no_repeat_ngram_size: int = _count(
        0, in_requests=True, key="no_repeat_ngram_size", about="no n-gram of this length occurs twice; 0 allows all"
    )
    bad_words: tuple[tuple[int, ...], ...] = _tokens("bad_words_ids", "token sequences")  # must not come
    suppress_tokens: tuple[int, ...] = _tokens("suppress_tokens")
    begin_suppress_tokens: tuple[int, ...] = _tokens("begin_suppress_tokens")  # only as the first that is not forced
    # The first token; not forced after a prefix.
    forced_bos_token_id: int | None = _declared(
        None,
        Declaration(
            kind="token",
            least=0,
            most=LARGEST_COUNT,
            in_requests=True,
            key="forced_bos_token_id",
            about="the first token of the answer",
        ),
    )
    forced_eos_token_ids: tuple[int, ...] = _tokens("forced_eos_token_id")  # the token at max_new_tokens is one of them
    renormalize_logits: bool = _flag(key="renormalize_logits")

    # Also return each token's natural-log probability, as the model gave it before all the above.
    logprobs: bool = _flag()
    top_n_tokens: int = _count(
        0,
        most=20,
        in_requests=True,
        about="report this many of the likeliest tokens at each position, in details and in streams",
    )

    @property
    def prompt(self) -> int:
        """How many tokens the decoder gets before it generates any: its start token and the prefix."""
        return 1 + len(self.prefix_ids)

    @property
    def rows(self) -> int:
        """How many cache slots a generation owns: one per beam, or one per sample."""
        return self.num_beams if self.num_beams > 1 else self.num_return_sequences


DECLARATIONS: Mapping[str, Declaration] = MappingProxyType(
    {each.name: each.metadata["declaration"] for each in dataclasses.fields(GenerationParameters)}
)
