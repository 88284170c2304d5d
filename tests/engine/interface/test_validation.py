"""What is refused at admission, and with which words."""

import pytest

from server.engine.errors import BadRequestError
from server.engine.interface.config import EngineLimits
from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.validation import check_parameters, check_source

LIMITS = EngineLimits(max_source_tokens=20, max_new_tokens=24, slots=4)


def check(**fields: object) -> None:
    parameters = GenerationParameters(**({"max_new_tokens": 10} | fields))  # type: ignore[arg-type]
    check_parameters(parameters, limits=LIMITS, vocab_size=30, eos_ids=(1,))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: it must be from 1 to 24"),
        (
            {"max_new_tokens": 20, "prefix_ids": (3,) * 5},
            "max_new_tokens is 20: it must be from 1 to 19 after a prefix",
        ),
        ({"prefix_ids": (3,) * 24}, "prefix_ids has 24 tokens: it must be shorter than the 24 new tokens"),
        ({"min_new_tokens": 11}, "min_new_tokens is 11: it must be from 0 to max_new_tokens, which is 10"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1: it must be from 0"),
        (
            {"temperature": 0.0},
            "temperature is 0: it must be a number of at least 1e-30, or leave it out for the likeliest tokens",
        ),
        ({"temperature": float("nan")}, "temperature is nan: it must be a number of at least 1e-30"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf: it must be a number from 1e-06 to 1000000"),
        ({"top_p": 0.0}, "top_p is 0: it must be a number above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1: it must be a number above 0 and at most 1"),
        ({"typical_p": -1.0}, "typical_p is -1: it must be a number above 0 and at most 1"),
        ({"length_penalty": float("nan")}, "length_penalty is nan: it must be a number from -10 to 10"),
        ({"length_penalty": -400.0}, "length_penalty is -400: it must be a number from -10 to 10"),
        ({"temperature": 1e-38}, "temperature is 1e-38: it must be a number of at least 1e-30"),
        ({"early_stopping": "soon"}, "early_stopping is 'soon': it must be true, false or 'never'"),
        ({"top_k": -1}, "top_k is -1: it must be a whole number of at least 0"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size is -2: it must be a whole number of at least 0"),
        ({"top_n_tokens": -2}, "top_n_tokens is -2: it must be a whole number from 0 to 20"),
        ({"seed": -1}, "seed is -1: it must be a whole number from 0 to 18446744073709551615"),
        ({"seed": 2**64}, "seed is 18446744073709551616: it must be a whole number from 0 to 18446744073709551615"),
        ({"num_beams": 5}, "num_beams is 5: it must be from 1 to 4, the slots that this model is loaded with"),
        ({"num_beams": 0}, "num_beams is 0: it must be from 1 to 4"),
        ({"num_return_sequences": 5, "do_sample": True}, "num_return_sequences is 5: it must be from 1 to 4"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2, but greedy decoding has one answer: set num_beams"),
        ({"num_return_sequences": 4, "num_beams": 3}, "num_return_sequences is 4, but num_beams is 3: ask for at most"),
        (
            {"prefix_ids": (30,)},
            "prefix_ids holds token 30, which is outside the vocabulary of 30: use this model's tokenizer",
        ),
        ({"bad_words": ((3, -1),)}, "bad_words holds token -1, which is outside the vocabulary of 30"),
        ({"bad_words": ((),)}, "bad_words holds an empty sequence: give at least one token for each"),
        ({"suppress_tokens": (31,)}, "suppress_tokens holds token 31, which is outside"),
        ({"begin_suppress_tokens": (31,)}, "begin_suppress_tokens holds token 31, which is outside"),
        ({"forced_bos_token_id": 31}, "forced_bos_token_id holds token 31, which is outside"),
        ({"forced_eos_token_ids": (31,)}, "forced_eos_token_ids holds token 31, which is outside"),
        (
            {"forced_bos_token_id": 5, "suppress_tokens": (5,)},
            "forced_bos_token_id is 5, which is among suppress_tokens, so that no token could come first",
        ),
        (
            {"forced_eos_token_ids": (1,), "suppress_tokens": (5, 1)},
            r"forced_eos_token_ids are \[1\], all among suppress_tokens, so that no token could come last",
        ),
        (
            {"suppress_tokens": tuple(range(2, 30)), "min_new_tokens": 2, "bad_words": ((0,),)},
            "suppress_tokens with begin_suppress_tokens, bad_words and min_new_tokens forbids all 30 tokens",
        ),
    ],
)
def test_parameters_that_cannot_be_are_refused_with_the_remedy(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        check(**fields)


def test_all_that_can_be_is_accepted() -> None:
    check(num_beams=4, num_return_sequences=4, length_penalty=-2.0, early_stopping="never", forced_eos_token_ids=(1,))
    check(do_sample=True, num_return_sequences=4, top_k=100, top_p=0.1, typical_p=1.0, seed=2**64 - 1)
    check(prefix_ids=(5,), forced_bos_token_id=5, suppress_tokens=(5,))  # nothing is forced after a prefix
    check(max_new_tokens=20, prefix_ids=(3,) * 4, min_new_tokens=20)
    check(bad_words=((1,),), suppress_tokens=tuple(range(2, 30)), forced_bos_token_id=0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "the source is empty"),
        ([3] * 21, "the source has 21 tokens, but this model is loaded for at most 20: shorten it"),
        ([3, 30], "holds token 30, which is outside the vocabulary of 30"),
        ([-1, 3], "holds token -1, which is outside the vocabulary of 30"),
    ],
)
def test_sources_that_cannot_be_encoded_are_refused(source: list[int], message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        check_source(source, limits=LIMITS, vocab_size=30)
