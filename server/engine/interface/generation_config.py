"""What a model's own generation_config.json says about decoding: the defaults of every request.

The names and the meaning are transformers'. What transformers would do with a key and this engine cannot is refused,
so that no model is silently decoded in another way; keys that do not touch the tokens are ignored. Needs no torch.
"""

import dataclasses
import math
import reprlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from server.engine.errors import BadRequestError, LoadError
from server.engine.interface.parameters import GenerationParameters

# What transformers falls back on where neither the model nor the caller says anything, and is not neutral.
_DEFAULT_TOP_K = 50

# Keys that would change the tokens in a way that this engine cannot; the values under which they change nothing.
_REFUSED: dict[str, tuple[object, ...]] = {
    "constraints": (),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "guidance_scale": (1,),
    "max_time": (),
    "min_p": (),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "remove_invalid_values": (False,),
    "sequence_bias": (),
    "stop_strings": (),
    "token_healing": (False,),
    "top_h": (),
    "watermarking_config": (),
}


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """How a model is decoded where a request says nothing."""

    parameters: GenerationParameters  # both lengths are those of a request without a decoder prefix
    max_length: int | None  # counts the start token and the prefix; None where the file counts new tokens, or nothing
    min_length: int | None  # the same
    most_new_tokens: int  # what the engine is loaded for, with the prefix
    eos_ids: tuple[int, ...]
    decoder_start_id: int

    def resolve(self, given: Mapping[str, Any]) -> GenerationParameters:
        """The parameters of one request: what is `given`, by the names of GenerationParameters, else the defaults.

        The lengths follow the prefix, and the default for the least length gives way to the most.

        Raises:
            BadRequestError: the prefix leaves no room within the model's max_length.
        """
        base, taken = self.parameters, len(given.get("prefix_ids", ()))
        lengths = {"max_new_tokens": base.max_new_tokens, "min_new_tokens": base.min_new_tokens}
        if self.max_length is not None:
            lengths["max_new_tokens"] = min(base.max_new_tokens, self.max_length - 1 - taken)
        lengths["max_new_tokens"] = min(lengths["max_new_tokens"], self.most_new_tokens - taken)
        if self.min_length is not None:
            lengths["min_new_tokens"] = max(0, self.min_length - 1 - taken)
        if lengths["max_new_tokens"] < 1 and "max_new_tokens" not in given:
            raise BadRequestError(
                f"the decoder prefix has {taken} tokens, which leaves none of this model's max_length of "
                f"{self.max_length or self.most_new_tokens + 1}: shorten it, or give max_new_tokens"
            )
        parameters = dataclasses.replace(base, **(lengths | dict(given)))
        if "min_new_tokens" not in given:
            least = min(parameters.min_new_tokens, parameters.max_new_tokens)
            parameters = dataclasses.replace(parameters, min_new_tokens=least)
        return parameters


def with_seed(parameters: GenerationParameters) -> GenerationParameters:
    """The same, with a seed drawn where sampling needs one."""
    if parameters.do_sample and parameters.seed is None:
        return dataclasses.replace(parameters, seed=secrets.randbits(53))  # exact wherever JSON's numbers are doubles
    return parameters


def read_generation_config(
    fields: Mapping[str, Any], *, path: Path, vocab_size: int, eos_id: int, decoder_start_id: int, most_new_tokens: int
) -> GenerationDefaults:
    """Read the defaults out of a parsed generation_config.json, or out of a config.json that holds them as well.

    Where the file names no end or start token, they are `eos_id` and `decoder_start_id`; where it says nothing about
    length, `most_new_tokens`, which also bounds what it says.

    Raises:
        LoadError: a value is senseless, or asks for a way of decoding that this engine has not.
    """
    for key, neutral in _REFUSED.items():
        if fields.get(key) is not None and fields[key] not in neutral:
            raise LoadError(
                f"{path}: {key} is {reprlib.repr(fields[key])}, which this engine cannot do: remove it, and see "
                "whether the model still answers as you want"
            )
    read = _Fields(fields, path, vocab_size)
    max_new_tokens, max_length = read.count("max_new_tokens", least=1), read.count("max_length", least=2)
    min_new_tokens, min_length = read.count("min_new_tokens"), read.count("min_length")
    if max_new_tokens is not None:
        max_length = None
    elif max_length is not None:
        max_new_tokens = max_length - 1  # the decoder's start token counts
    if min_new_tokens is not None:
        min_length = None
    elif min_length is not None:
        min_new_tokens = max(0, min_length - 1)
    longest = min(max_new_tokens or most_new_tokens, most_new_tokens)
    start, do_sample = read.token("decoder_start_token_id"), read.flag("do_sample")
    return GenerationDefaults(
        parameters=GenerationParameters(
            max_new_tokens=longest,
            min_new_tokens=min(min_new_tokens or 0, longest),
            do_sample=do_sample,
            # Zero is how some write "greedy"; without sampling nothing reads it.
            temperature=1.0 if fields.get("temperature") == 0 and not do_sample else read.number("temperature", 1.0),
            top_k=_or(read.count("top_k"), _DEFAULT_TOP_K),
            top_p=read.number("top_p", 1.0),
            typical_p=read.number("typical_p", 1.0),
            num_beams=read.count("num_beams", least=1) or 1,
            length_penalty=read.number("length_penalty", 1.0, above=-math.inf),
            early_stopping=read.early_stopping(),
            num_return_sequences=read.count("num_return_sequences", least=1) or 1,
            repetition_penalty=read.number("repetition_penalty", 1.0),
            no_repeat_ngram_size=read.count("no_repeat_ngram_size") or 0,
            bad_words=read.token_sequences("bad_words_ids"),
            suppress_tokens=read.tokens("suppress_tokens"),
            begin_suppress_tokens=read.tokens("begin_suppress_tokens"),
            forced_bos_token_id=read.token("forced_bos_token_id"),
            forced_eos_token_ids=read.tokens("forced_eos_token_id"),
            renormalize_logits=read.flag("renormalize_logits"),
        ),
        max_length=max_length,
        min_length=min_length,
        most_new_tokens=most_new_tokens,
        eos_ids=read.tokens("eos_token_id") or (eos_id,),
        decoder_start_id=decoder_start_id if start is None else start,
    )


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


class _Fields:
    """Reads single values; None, and a key that is not there, are the same."""

    def __init__(self, fields: Mapping[str, Any], path: Path, vocab_size: int) -> None:
        self._fields = fields
        self._path = path
        self._vocab_size = vocab_size

    def bad(self, key: str, wanted: str) -> LoadError:
        return LoadError(f"{self._path}: {key} is {reprlib.repr(self._fields[key])}: it must be {wanted}")

    def count(self, key: str, *, least: int = 0) -> int | None:
        value = self._fields.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.bad(key, f"a whole number from {least}")
        return value

    def number(self, key: str, default: float, *, above: float = 0.0) -> float:
        value = self._fields.get(key, default)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not above < value < math.inf:
            raise self.bad(key, "a number" if above < 0 else f"a number above {above:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self._fields.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.bad(key, "true or false")
        return bool(value)

    def early_stopping(self) -> bool | Literal["never"]:
        if self._fields.get("early_stopping") == "never":
            return "never"
        return self.flag("early_stopping")

    def token(self, key: str) -> int | None:
        tokens = self.tokens(key)
        if len(tokens) > 1:
            raise self.bad(key, "one token id")
        return tokens[0] if tokens else None

    def tokens(self, key: str) -> tuple[int, ...]:
        """A token or a list of tokens."""
        value = self._fields.get(key)
        if value is None:
            return ()
        return self._as_tokens(key, value if isinstance(value, list) else [value])

    def token_sequences(self, key: str) -> tuple[tuple[int, ...], ...]:
        value = self._fields.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(each, list) and each for each in value):
            raise self.bad(key, "a list of lists of token ids")
        return tuple(self._as_tokens(key, each) for each in value)

    def _as_tokens(self, key: str, values: list[Any]) -> tuple[int, ...]:
        for value in values:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < self._vocab_size:
                raise self.bad(key, f"token ids below vocab_size, {self._vocab_size}")
        return tuple(values)
