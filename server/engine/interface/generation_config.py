"""What a model's own generation_config.json says about decoding: the defaults of every request.

Names and meanings are those of transformers. A key that transformers supports and this engine does not is refused, so
no model is silently decoded in another way; keys that do not affect the tokens are ignored. Needs no torch.
"""

import dataclasses
import reprlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.engine.errors import BadParameterError, LoadError
from server.engine.interface.parameters import DECLARATIONS, Declaration, GenerationParameters

# Keys that would change the tokens in a way this engine does not support, with the values that change nothing.
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
    """How a model is decoded when a request says nothing."""

    parameters: GenerationParameters  # both lengths assume a request without a decoder prefix
    max_length: int | None  # counts the start token and the prefix; None if the file counts new tokens, or nothing
    min_length: int | None  # the same
    most_new_tokens: int  # what the engine is loaded for, including the prefix
    eos_ids: tuple[int, ...]
    decoder_start_id: int

    def resolve(self, given: Mapping[str, Any]) -> GenerationParameters:
        """The parameters of one request: those `given`, under the names of GenerationParameters, else the defaults.

        The default lengths account for the prefix; a default minimum length yields to the maximum.

        Raises:
            BadParameterError: the prefix leaves no room within the model's max_length.
        """
        base, taken = self.parameters, len(given.get("prefix_ids", ()))
        lengths = {"max_new_tokens": base.max_new_tokens, "min_new_tokens": base.min_new_tokens}
        if self.max_length is not None:
            lengths["max_new_tokens"] = min(base.max_new_tokens, self.max_length - 1 - taken)
        lengths["max_new_tokens"] = min(lengths["max_new_tokens"], self.most_new_tokens - taken)
        if self.min_length is not None:
            lengths["min_new_tokens"] = max(0, self.min_length - 1 - taken)
        if lengths["max_new_tokens"] < 1 and "max_new_tokens" not in given:
            raise BadParameterError(
                "prefix_ids",
                f"has {taken} tokens, which leaves none of this model's max_length of "
                f"{self.max_length or self.most_new_tokens + 1}: shorten it, or give max_new_tokens",
            )
        parameters = dataclasses.replace(base, **(lengths | dict(given)))
        if "min_new_tokens" not in given:
            least = min(parameters.min_new_tokens, parameters.max_new_tokens)
            parameters = dataclasses.replace(parameters, min_new_tokens=least)
        return parameters


def with_seed(parameters: GenerationParameters) -> GenerationParameters:
    """The same parameters, with a seed drawn if sampling needs one."""
    if parameters.do_sample and parameters.seed is None:
        return dataclasses.replace(parameters, seed=secrets.randbits(53))  # exact wherever JSON's numbers are doubles
    return parameters


def read_generation_config(
    fields: Mapping[str, Any], *, path: Path, vocab_size: int, eos_id: int, decoder_start_id: int, most_new_tokens: int
) -> GenerationDefaults:
    """Read the defaults from a parsed generation_config.json, or from a config.json that also holds them.

    If the file names no end or start token, `eos_id` and `decoder_start_id` apply. If it gives no length,
    `most_new_tokens` applies, which also caps any length it gives.

    Raises:
        LoadError: a value is invalid, or asks for a decoding method that this engine does not support.
    """
    for key, neutral in _REFUSED.items():
        if fields.get(key) is not None and fields[key] not in neutral:
            raise LoadError(
                f"{path}: {key} is {reprlib.repr(fields[key])}, which this engine does not support: remove it, and see "
                "whether the model still answers as you want"
            )
    read = _Fields(fields, path, vocab_size)
    values = {name: read.value(declared) for name, declared in DECLARATIONS.items() if declared.key is not None}
    values = {name: value for name, value in values.items() if value is not None}
    max_new_tokens, max_length = values.get("max_new_tokens"), read.count("max_length", least=2)
    min_new_tokens, min_length = values.get("min_new_tokens"), read.count("min_length")
    if max_new_tokens is not None:
        max_length = None
    elif max_length is not None:
        max_new_tokens = max_length - 1  # the decoder's start token counts
    if min_new_tokens is not None:
        min_length = None
    elif min_length is not None:
        min_new_tokens = max(0, min_length - 1)
    longest = min(max_new_tokens or most_new_tokens, most_new_tokens)
    values |= {"max_new_tokens": longest, "min_new_tokens": min(min_new_tokens or 0, longest)}
    start = read.token("decoder_start_token_id")
    return GenerationDefaults(
        parameters=GenerationParameters(**values),
        max_length=max_length,
        min_length=min_length,
        most_new_tokens=most_new_tokens,
        eos_ids=read.tokens("eos_token_id") or (eos_id,),
        decoder_start_id=decoder_start_id if start is None else start,
    )


class _Fields:
    """Reads single values; None means the same as a missing key."""

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

    def value(self, declared: Declaration) -> Any:
        """A declared parameter's value; if the file does not name it, the declaration's `unset`."""
        key = declared.key
        assert key is not None, "a parameter that no file has"
        if self._fields.get(key) is None:
            return declared.unset
        match declared.kind:
            case "count":
                return self.count(key, least=int(declared.least or 0))
            case "number":
                return self._number(key, declared)
            case "flag":
                return self._flag(key)
            case "early stopping":
                return "never" if self._fields[key] == "never" else self._flag(key)
            case "token":
                return self.token(key)
            case "tokens":
                return self.tokens(key)
            case "token sequences":
                return self._token_sequences(key)

    def _number(self, key: str, declared: Declaration) -> float | None:
        value = self._fields[key]
        # Some files write zero for "greedy"; without sampling nothing reads it.
        if declared.samples and value == 0 and not self._fields.get("do_sample"):
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or declared.problem(value) is not None:
            raise self.bad(key, declared.rule)
        try:
            return float(value)
        except OverflowError:  # a whole number of hundreds of digits
            raise self.bad(key, "a number that a computer can hold") from None

    def _flag(self, key: str) -> bool:
        value = self._fields[key]
        if not isinstance(value, bool):
            raise self.bad(key, "true or false")
        return value

    def token(self, key: str) -> int | None:
        tokens = self.tokens(key)
        if len(tokens) > 1:
            raise self.bad(key, "one token id")
        return tokens[0] if tokens else None

    def tokens(self, key: str) -> tuple[int, ...]:
        """One token or a list of tokens."""
        value = self._fields.get(key)
        if value is None:
            return ()
        return self._as_tokens(key, value if isinstance(value, list) else [value])

    def _token_sequences(self, key: str) -> tuple[tuple[int, ...], ...]:
        value = self._fields[key]
        if not isinstance(value, list) or not all(isinstance(each, list) and each for each in value):
            raise self.bad(key, "a list of lists of token ids")
        return tuple(self._as_tokens(key, each) for each in value)

    def _as_tokens(self, key: str, values: list[Any]) -> tuple[int, ...]:
        for value in values:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < self._vocab_size:
                raise self.bad(key, f"token ids below vocab_size, {self._vocab_size}")
        return tuple(values)
