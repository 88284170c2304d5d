"""Choices against torch's own argmax, topk and log_softmax, and transformers' warpers."""

import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from server.engine.choice.sampling import (
    draw_without_replacement,
    greedy,
    likeliest,
    sample,
    uniform,
    warp,
)
from server.engine.interface.parameters import GenerationParameters

# Small; whole blocks (T5's own vocabulary); blocks and a rest.
VOCABULARIES = [1, 72, 32128, 32100, 32117]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_the_choice_is_the_first_of_the_highest(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(9, vocabulary, generator=generator)
    logits[0] = 0.0
    logits[1, vocabulary // 2 :] = 7.0  # a tie over many blocks
    logits[2, [0, -1]] = 9.0
    logits[3, -1] = 9.0
    choice = greedy(logits)
    assert torch.equal(choice.tokens_N, logits.argmax(-1))
    assert torch.equal(choice.max_logits_N, logits.amax(-1))


@pytest.mark.parametrize("vocabulary", VOCABULARIES[1:])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_in_the_peak_of_its_row_alone(vocabulary: int, value: float) -> None:
    logits = torch.randn(3, vocabulary)
    logits[1, vocabulary // 3] = value
    assert greedy(logits).max_logits_N.isfinite().tolist() == [True, False, True]
    logits[2, -1] = value
    assert greedy(logits).max_logits_N.isfinite().tolist() == [True, False, False]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("count", [1, 8, 64])
def test_the_likeliest_few_are_those_of_topk(vocabulary: int, count: int) -> None:
    scores = torch.randn(5, vocabulary)
    scores[1, : vocabulary // 2] = 5.0  # ties
    scores[2, 10:] = -math.inf
    scores[3, -3:] = 9.0
    expected = scores.topk(min(count, vocabulary))
    values, tokens = likeliest(scores, min(count, vocabulary))
    assert torch.equal(values, expected.values)
    assert torch.equal(scores.gather(1, tokens), values)
    assert all(len(set(row)) == len(row) for row in tokens.tolist())


WARPS: dict[str, dict[str, float]] = {
    "plain": {},
    "hot": {"temperature": 1.7},
    "top-k": {"top_k": 5},
    "top-p": {"top_p": 0.7},
    "typical": {"typical_p": 0.6},
    "cool, all": {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "typical_p": 0.8},
    "almost nothing": {"top_p": 1e-6},
    "more than there are": {"top_k": 5000},
    "top-k, top-p": {"top_k": 50, "top_p": 0.8},
    "top-p, typical": {"top_p": 0.95, "typical_p": 0.3},
}


def sampling(**fields: float) -> GenerationParameters:
    return GenerationParameters(max_new_tokens=1, do_sample=True, **fields)  # type: ignore[arg-type]


def theirs(parameters: GenerationParameters, keep: int = 1) -> LogitsProcessorList:
    warpers = LogitsProcessorList()
    if parameters.temperature != 1:
        warpers.append(TemperatureLogitsWarper(parameters.temperature))
    if parameters.top_k:
        warpers.append(TopKLogitsWarper(parameters.top_k, min_tokens_to_keep=keep))
    if parameters.top_p < 1:
        warpers.append(TopPLogitsWarper(parameters.top_p, min_tokens_to_keep=keep))
    if parameters.typical_p < 1:
        warpers.append(TypicalLogitsWarper(parameters.typical_p, min_tokens_to_keep=keep))
    return warpers


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("vocabulary", [72, 4111])
@pytest.mark.parametrize("spread", [0.1, 3.0, 8.0])  # from where the mass is anywhere to where a few tokens have it
def test_warping_is_transformers_in_rows_of_all_kinds(vocabulary: int, spread: float, keep: int) -> None:
    parameters = [sampling(**fields) for fields in WARPS.values()]
    scores = spread * torch.randn(len(parameters), vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    before = scores.clone()
    expected = torch.cat(
        [theirs(each, keep)(None, row[None].clone()) for each, row in zip(parameters, scores, strict=True)]
    )
    assert torch.allclose(warp(scores, parameters, keep), expected, atol=1e-6)
    assert torch.equal(scores, before), "the scores were changed"


def theirs_probabilities(scores: torch.Tensor, parameters: GenerationParameters) -> torch.Tensor:
    warped: torch.Tensor = theirs(parameters)(None, scores[None].clone())[0]
    return warped.double().softmax(-1)


@pytest.mark.parametrize("vocabulary", [72, 4111])
def test_each_token_has_its_share_of_the_numbers(vocabulary: int) -> None:
    """A sweep over [0, 1) in even steps draws each token as often as its warped probability says, but for one step."""
    steps = 1000
    numbers = [(step + 0.5) / steps for step in range(steps)]
    scores = 3 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(1))
    for fields in WARPS.values():
        parameters = sampling(**fields)
        tokens: list[int] = []
        for start in range(0, steps, 250):
            part = numbers[start : start + 250]
            tokens += sample(scores.expand(len(part), -1), [parameters] * len(part), part)
        counts = torch.bincount(torch.tensor(tokens), minlength=vocabulary)
        expected = theirs_probabilities(scores, parameters) * steps
        assert (counts - expected).abs().max() <= 1.001
        assert counts[expected == 0].sum() == 0
        assert tokens == sorted(tokens), "shares stand in the order of the vocabulary"


def test_a_row_draws_the_same_in_any_company() -> None:
    scores = 3 * torch.randn(len(WARPS), 4096)
    parameters = [sampling(**fields) for fields in WARPS.values()]
    numbers = torch.rand(len(WARPS), dtype=torch.double).tolist()
    together = sample(scores, parameters, numbers)
    alone = [
        sample(scores[i : i + 1], [each], [number])[0]
        for i, (each, number) in enumerate(zip(parameters, numbers, strict=True))
    ]
    assert together == alone


def test_all_that_tie_with_the_last_of_top_k_are_kept() -> None:
    scores = torch.zeros(1, 4096)
    scores[0, 100:200] = 1.0
    tokens = {sample(scores, [sampling(top_k=5)], [number / 200])[0] for number in range(200)}
    assert tokens == set(range(100, 200))


def test_the_ends_of_the_range_draw_tokens_that_are_possible() -> None:
    scores = torch.full((1, 72), -math.inf)
    scores[0, [20, 30]] = 0.0
    assert sample(scores, [sampling()], [0.0]) == [20]
    assert sample(scores, [sampling()], [1 - 2**-53]) == [30]


def test_numbers_are_even_and_belong_to_their_place() -> None:
    numbers = torch.tensor([uniform(7, 0, position) for position in range(20000)], dtype=torch.double)
    counts = torch.histc(numbers, bins=50, min=0, max=1)
    assert ((counts - 400) ** 2 / 400).sum() < 85  # chi-squared of 49 degrees of freedom, 1 in 1000
    assert (numbers[1:] * numbers[:-1]).mean().item() == pytest.approx(0.25, abs=0.01)
    assert 0 <= numbers.min() < numbers.max() < 1
    assert (
        len(
            {
                uniform(seed, stream, at, draw)
                for seed in (1, 2**64 - 1)
                for stream in (0, 1)
                for at in (0, 1)
                for draw in (0, 1)
            }
        )
        == 16
    )
    assert uniform(42, 0, 1) == pytest.approx(0.8230560874423226), "what a seed gives is never to change"


def test_drawing_without_replacement_is_drawing_and_leaving_out() -> None:
    """The first two of an urn of four: their joint shares, against the rule."""
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    counts = torch.zeros(4, 4)
    draws = 20000
    for i in range(draws):
        first, second = draw_without_replacement(scores, [uniform(1, 0, i, 0), uniform(1, 0, i, 1)])
        counts[first, second] += 1
    shares = scores.exp()
    expected = shares[:, None] * shares[None, :] / (1 - shares[:, None])
    expected.fill_diagonal_(0)
    assert torch.allclose(counts / draws, expected, atol=0.01)


def test_where_no_probability_is_left_the_highest_scores_follow() -> None:
    scores = torch.tensor([-1e9, 0.0, -math.inf, -2e9])
    assert draw_without_replacement(scores, [0.5, 0.5, 0.5]) == [1, 0, 3]
