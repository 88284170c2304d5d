"""Refuses at admission what could only go wrong in mid-batch. Needs no torch."""

import math
from collections.abc import Collection

from server.engine.errors import BadRequestError
from server.engine.interface.config import EngineLimits
from server.engine.interface.parameters import GenerationParameters

_SMALLEST = 1e-30  # scores divided by less leave the range of float32
_LARGEST_PENALTY = 10  # lengths to a much higher power leave the range of floats
_LARGEST_SEED = 2**64 - 1


def check_source(source: list[int], *, limits: EngineLimits, vocab_size: int) -> None:
    """Raise BadRequestError where a source cannot be encoded."""
    if not source:
        raise BadRequestError("the source is empty: give at least one token")
    if len(source) > limits.max_source_tokens:
        raise BadRequestError(
            f"the source has {len(source)} tokens, but this model is loaded for at most "
            f"{limits.max_source_tokens}: shorten it"
        )
    _check_tokens("", (min(source), max(source)), vocab_size)


def check_parameters(
    parameters: GenerationParameters, *, limits: EngineLimits, vocab_size: int, eos_ids: Collection[int]
) -> None:
    """Raise BadRequestError where parameters are out of range, or cannot hold together."""
    _check_lengths(parameters, limits)
    _check_numbers(parameters)
    _check_rows(parameters, limits)
    _check_all_tokens(parameters, vocab_size)
    _check_that_something_is_allowed(parameters, vocab_size, frozenset(eos_ids))


def _check_lengths(parameters: GenerationParameters, limits: EngineLimits) -> None:
    wanted, prefix = parameters.max_new_tokens, len(parameters.prefix_ids)
    room = limits.max_new_tokens - prefix
    if room < 1:
        raise BadRequestError(
            f"the decoder prefix has {prefix} tokens: it must be shorter than the {limits.max_new_tokens} new tokens "
            "that this model is loaded for"
        )
    if not 1 <= wanted <= room:
        after = f" after a prefix of {prefix}" if prefix else ""
        raise BadRequestError(f"max_new_tokens is {wanted}: it must be from 1 to {room}{after}")
    if not 0 <= parameters.min_new_tokens <= wanted:
        raise BadRequestError(
            f"min_new_tokens is {parameters.min_new_tokens}: it must be from 0 to max_new_tokens, which is {wanted}"
        )


def _check_numbers(parameters: GenerationParameters) -> None:
    for name in ("temperature", "repetition_penalty"):
        value = getattr(parameters, name)
        if not _SMALLEST <= value < math.inf:
            remedy = ", or do_sample false for the likeliest tokens" if name == "temperature" else ""
            raise BadRequestError(f"{name} is {value:g}: it must be a number, at least {_SMALLEST:g}{remedy}")
    for name in ("top_p", "typical_p"):
        value = getattr(parameters, name)
        if not 0 < value <= 1:
            raise BadRequestError(f"{name} is {value:g}: it must be above 0 and at most 1, which keeps all tokens")
    if not abs(parameters.length_penalty) <= _LARGEST_PENALTY:
        most = _LARGEST_PENALTY
        raise BadRequestError(f"length_penalty is {parameters.length_penalty:g}: it must be from -{most} to {most}")
    if parameters.early_stopping not in (True, False, "never"):
        raise BadRequestError(f"early_stopping is {parameters.early_stopping!r}: it must be true, false or 'never'")
    for name in ("top_k", "no_repeat_ngram_size", "top_n_tokens"):
        value = getattr(parameters, name)
        if value < 0:
            raise BadRequestError(f"{name} is {value}: it must be 0, which is off, or more")
    if parameters.seed is not None and not 0 <= parameters.seed <= _LARGEST_SEED:
        raise BadRequestError(f"seed is {parameters.seed}: it must be from 0 to {_LARGEST_SEED}")


def _check_rows(parameters: GenerationParameters, limits: EngineLimits) -> None:
    beams, returned = parameters.num_beams, parameters.num_return_sequences
    for name, value in (("num_beams", beams), ("num_return_sequences", returned)):
        if not 1 <= value <= limits.slots:
            raise BadRequestError(
                f"{name} is {value}: it must be from 1 to {limits.slots}, the slots that this model is loaded with"
            )
    if beams == 1 and returned > 1 and not parameters.do_sample:
        raise BadRequestError(
            f"num_return_sequences is {returned}, but greedy decoding has one answer: "
            "set num_beams to at least as many, or do_sample"
        )
    if beams > 1 and returned > beams:
        raise BadRequestError(
            f"num_return_sequences is {returned}, but num_beams is {beams}: ask for at most as many as there are beams"
        )


def _check_all_tokens(parameters: GenerationParameters, vocab_size: int) -> None:
    if not all(parameters.bad_words):
        raise BadRequestError("bad_words holds an empty sequence: give at least one token for each")
    forced = () if parameters.forced_bos_token_id is None else (parameters.forced_bos_token_id,)
    for name, tokens in (
        ("prefix_ids: ", parameters.prefix_ids),
        ("bad_words: ", [token for word in parameters.bad_words for token in word]),
        ("suppress_tokens: ", parameters.suppress_tokens),
        ("begin_suppress_tokens: ", parameters.begin_suppress_tokens),
        ("forced_bos_token_id: ", forced),
        ("forced_eos_token_ids: ", parameters.forced_eos_token_ids),
    ):
        _check_tokens(name, tokens, vocab_size)


def _check_tokens(where: str, tokens: Collection[int], vocab_size: int) -> None:
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise BadRequestError(
                f"{where}token {token} is outside the vocabulary of {vocab_size}: use this model's tokenizer"
            )


def _check_that_something_is_allowed(
    parameters: GenerationParameters, vocab_size: int, eos_ids: frozenset[int]
) -> None:
    suppressed = set(parameters.suppress_tokens)
    forced, last = parameters.forced_bos_token_id, set(parameters.forced_eos_token_ids)
    if forced is not None and forced in suppressed and not parameters.prefix_ids:
        raise BadRequestError(
            f"forced_bos_token_id {forced} is among suppress_tokens, so that no token could come first: "
            "take it out of one of them"
        )
    if last and last <= suppressed:
        raise BadRequestError(
            f"forced_eos_token_ids {sorted(last)} are among suppress_tokens, so that no token could come last: "
            "take them out of one of them"
        )
    banned = suppressed | ({word[0] for word in parameters.bad_words if len(word) == 1} - eos_ids)
    if parameters.min_new_tokens > 0:
        banned |= eos_ids
    if len(banned | set(parameters.begin_suppress_tokens)) >= vocab_size:
        raise BadRequestError(
            f"suppress_tokens, begin_suppress_tokens, bad_words and min_new_tokens forbid all {vocab_size} tokens of "
            "the vocabulary: leave some"
        )
