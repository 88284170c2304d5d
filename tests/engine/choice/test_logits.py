"""Processors against transformers' own, on random scores and histories."""

import math
import random

import pytest
import torch
from torch import Tensor
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from server.engine.choice.logits import Rules, process
from server.engine.interface.parameters import GenerationParameters

VOCABULARY = 12
EOS_IDS = (1, 3)
MAX_NEW_TOKENS = 9

PARAMETERS = {
    "repetition": GenerationParameters(max_new_tokens=MAX_NEW_TOKENS, repetition_penalty=1.5),
    "n-grams": GenerationParameters(max_new_tokens=MAX_NEW_TOKENS, no_repeat_ngram_size=2),
    "longer n-grams": GenerationParameters(max_new_tokens=MAX_NEW_TOKENS, no_repeat_ngram_size=4),
    "bad words": GenerationParameters(
        max_new_tokens=MAX_NEW_TOKENS, bad_words=((2,), (1,), (4, 5), (6, 7, 8), (9, 9), (5,), (0, 4), (1, 3))
    ),
    "all": GenerationParameters(
        max_new_tokens=MAX_NEW_TOKENS,
        min_new_tokens=4,
        repetition_penalty=0.7,
        no_repeat_ngram_size=3,
        bad_words=((2,), (4, 5)),
        suppress_tokens=(7, 2),
        begin_suppress_tokens=(8, 9),
        forced_bos_token_id=5,
        forced_eos_token_ids=(3,),
    ),
    "all after a prefix": GenerationParameters(
        max_new_tokens=MAX_NEW_TOKENS,
        min_new_tokens=4,
        no_repeat_ngram_size=1,
        begin_suppress_tokens=(8, 9),
        forced_bos_token_id=5,
        forced_eos_token_ids=(1, 3),
        prefix_ids=(4, 6, 4),
    ),
    "nothing": GenerationParameters(max_new_tokens=MAX_NEW_TOKENS),
}


def theirs(parameters: GenerationParameters) -> LogitsProcessorList:
    """As `_get_logits_processor` would put them together."""
    prompt, eos = 1 + len(parameters.prefix_ids), list(EOS_IDS)
    processors = LogitsProcessorList()
    if parameters.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(parameters.repetition_penalty))
    if parameters.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(parameters.no_repeat_ngram_size))
    if parameters.bad_words:
        processors.append(NoBadWordsLogitsProcessor([list(word) for word in parameters.bad_words], eos))
    if parameters.min_new_tokens:
        processors.append(MinNewTokensLengthLogitsProcessor(prompt, parameters.min_new_tokens, eos))
    if parameters.forced_bos_token_id is not None:
        processors.append(ForcedBOSTokenLogitsProcessor(parameters.forced_bos_token_id))
    if parameters.forced_eos_token_ids:
        last = prompt + parameters.max_new_tokens
        processors.append(ForcedEOSTokenLogitsProcessor(last, list(parameters.forced_eos_token_ids)))
    if parameters.suppress_tokens:
        processors.append(SuppressTokensLogitsProcessor(parameters.suppress_tokens))
    if parameters.begin_suppress_tokens:
        begin = prompt if prompt > 1 or parameters.forced_bos_token_id is None else prompt + 1
        processors.append(SuppressTokensAtBeginLogitsProcessor(parameters.begin_suppress_tokens, begin))
    return processors


def random_history(parameters: GenerationParameters, made: int, generator: random.Random) -> list[int]:
    few = generator.choices(range(VOCABULARY), k=4)  # so that things repeat
    return [0, *parameters.prefix_ids, *generator.choices(few, k=made)]


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_all_kinds_are_processed_together_as_each_by_transformers(seed: int) -> None:
    generator = random.Random(seed)
    torch.manual_seed(seed)
    cases = [
        (parameters, random_history(parameters, made, generator))
        for parameters in PARAMETERS.values()
        for made in range(MAX_NEW_TOKENS)
    ]
    generator.shuffle(cases)
    scores = torch.randn(len(cases), VOCABULARY)
    expected = [
        theirs(parameters)(torch.tensor([history]), row[None].clone())[0]
        for (parameters, history), row in zip(cases, scores, strict=True)
    ]
    rules = [Rules.of(parameters, EOS_IDS) for parameters, _ in cases]
    processed = scores.clone()
    process(processed, rules, [history for _, history in cases])
    assert torch.allclose(processed, torch.stack(expected), atol=1e-6)
    for row, rule, (_, history), before in zip(processed, rules, cases, scores, strict=True):
        assert rule.apply_at(len(history)) or torch.equal(row, before), "a rule that does not say that it applies"


def processed_by(parameters: GenerationParameters, history: list[int]) -> Tensor:
    scores = torch.zeros(1, VOCABULARY)
    process(scores, [Rules.of(parameters, EOS_IDS)], [history])
    return scores[0]


def test_end_tokens_that_are_ignored_are_tokens_as_others() -> None:
    ignoring = GenerationParameters(max_new_tokens=9, ignore_eos=True, min_new_tokens=5, bad_words=((1,),))
    row = processed_by(ignoring, [0, 4])
    assert row[1] == -math.inf, "as a bad word it is banned like any"
    assert row[3] == 0


def test_rules_that_apply_at_single_steps_say_so() -> None:
    rules = Rules.of(
        GenerationParameters(
            max_new_tokens=9, min_new_tokens=2, forced_bos_token_id=4, forced_eos_token_ids=(1,), prefix_ids=()
        ),
        EOS_IDS,
    )
    assert [length for length in range(1, 10) if rules.apply_at(length)] == [1, 2, 9]


def test_a_repetition_penalty_keeps_the_dtype() -> None:
    scores = torch.randn(1, VOCABULARY, dtype=torch.float64)
    expected = RepetitionPenaltyLogitsProcessor(1.1)(torch.tensor([[0, 4]]), scores.clone())
    process(scores, [Rules.of(GenerationParameters(max_new_tokens=9, repetition_penalty=1.1), ())], [[0, 4]])
    assert torch.equal(scores, expected)
