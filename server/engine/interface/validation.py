"""Refuses at admission what would otherwise fail mid-batch. Needs no torch."""

from collections.abc import Collection

from server.engine.errors import BadParameterError, BadRequestError
from server.engine.interface.config import EngineLimits
from server.engine.interface.parameters import DECLARATIONS, GenerationParameters


def check_source(source: list[int], *, limits: EngineLimits, vocab_size: int) -> None:
    """Raise BadRequestError if a source cannot be encoded."""
    if not source:
        raise BadRequestError("the source is empty: give at least one token")
    if len(source) > limits.max_source_tokens:
        raise BadRequestError(
            f"the source has {len(source)} tokens, but this model is loaded for at most "
            f"{limits.max_source_tokens}: shorten it"
        )
    for token in (min(source), max(source)):
        if not 0 <= token < vocab_size:
            raise BadRequestError(f"the source {_outside(token, vocab_size)}")


def check_parameters(
    parameters: GenerationParameters, *, limits: EngineLimits, vocab_size: int, eos_ids: Collection[int]
) -> None:
    """Raise BadParameterError if parameters are out of range or contradict each other."""
    _check_lengths(parameters, limits)
    _check_rows(parameters, limits)
    _check_values(parameters, vocab_size)
    _check_that_something_is_allowed(parameters, vocab_size, frozenset(eos_ids))


def _check_lengths(parameters: GenerationParameters, limits: EngineLimits) -> None:
    wanted, prefix = parameters.max_new_tokens, len(parameters.prefix_ids)
    room = limits.max_new_tokens - prefix
    if room < 1:
        raise BadParameterError(
            "prefix_ids",
            f"has {prefix} tokens: it must be shorter than the {limits.max_new_tokens} new tokens "
            "that this model is loaded for",
        )
    if not 1 <= wanted <= room:
        after = f" after a prefix of {prefix}" if prefix else ""
        raise BadParameterError("max_new_tokens", f"is {wanted}: it must be from 1 to {room}{after}")
    if not 0 <= parameters.min_new_tokens <= wanted:
        raise BadParameterError(
            "min_new_tokens",
            f"is {parameters.min_new_tokens}: it must be from 0 to max_new_tokens, which is {wanted}",
        )


def _check_rows(parameters: GenerationParameters, limits: EngineLimits) -> None:
    beams, returned = parameters.num_beams, parameters.num_return_sequences
    for name, value in (("num_beams", beams), ("num_return_sequences", returned)):
        if not 1 <= value <= limits.slots:
            raise BadParameterError(
                name, f"is {value}: it must be from 1 to {limits.slots}, the slots that this model is loaded with"
            )
    if beams == 1 and returned > 1 and not parameters.do_sample:
        raise BadParameterError(
            "num_return_sequences",
            f"is {returned}, but greedy decoding has one answer: set num_beams to at least as many, or do_sample",
        )
    if beams > 1 and returned > beams:
        raise BadParameterError(
            "num_return_sequences",
            f"is {returned}, but num_beams is {beams}: ask for at most as many as there are beams",
        )


def _check_values(parameters: GenerationParameters, vocab_size: int) -> None:
    """Check each parameter by itself, as declared."""
    for name, declaration in DECLARATIONS.items():
        value = getattr(parameters, name)
        if value is None:
            continue
        problem = None
        match declaration.kind:
            case "count" | "number":
                problem = declaration.problem(value)
            case "early stopping":
                if value not in (True, False, "never"):
                    problem = f"is {value!r}: it must be true, false or 'never'"
            case "token":
                problem = _tokens_problem((value,), vocab_size)
            case "tokens":
                problem = _tokens_problem(value, vocab_size)
            case "token sequences":
                problem = _tokens_problem([token for sequence in value for token in sequence], vocab_size)
                if not all(value):
                    problem = "holds an empty sequence: give at least one token for each"
        if problem is not None:
            raise BadParameterError(name, problem)


def _tokens_problem(tokens: Collection[int], vocab_size: int) -> str | None:
    return next((_outside(token, vocab_size) for token in tokens if not 0 <= token < vocab_size), None)


def _outside(token: int, vocab_size: int) -> str:
    return f"holds token {token}, which is outside the vocabulary of {vocab_size}: use this model's tokenizer"


def _check_that_something_is_allowed(
    parameters: GenerationParameters, vocab_size: int, eos_ids: frozenset[int]
) -> None:
    suppressed = set(parameters.suppress_tokens)
    forced, last = parameters.forced_bos_token_id, set(parameters.forced_eos_token_ids)
    if forced is not None and forced in suppressed and not parameters.prefix_ids:
        raise BadParameterError(
            "forced_bos_token_id",
            f"is {forced}, which is among suppress_tokens, so that no token could come first: "
            "take it out of one of them",
        )
    if last and last <= suppressed:
        raise BadParameterError(
            "forced_eos_token_ids",
            f"are {sorted(last)}, all among suppress_tokens, so that no token could come last: "
            "take them out of one of them",
        )
    banned = suppressed | ({word[0] for word in parameters.bad_words if len(word) == 1} - eos_ids)
    if parameters.min_new_tokens > 0:
        banned |= eos_ids
    if len(banned | set(parameters.begin_suppress_tokens)) >= vocab_size:
        raise BadParameterError(
            "suppress_tokens",
            "with begin_suppress_tokens, bad_words and min_new_tokens "
            f"forbids all {vocab_size} tokens of the vocabulary: leave some",
        )
