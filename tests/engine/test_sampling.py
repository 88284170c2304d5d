"""Greedy choice against torch's own argmax and log_softmax."""

import pytest
import torch

from server.engine.sampling import greedy, peak_logprobs

# Small; in blocks of 128 (T5's own), of 300 (T5's tokenizer), with a prime that has no blocks.
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
    assert torch.equal(choice.peaks_N, logits.amax(-1))
    expected = logits.log_softmax(-1).amax(-1)
    assert torch.allclose(peak_logprobs(logits, choice.peaks_N), expected, atol=1e-5)


@pytest.mark.parametrize("vocabulary", VOCABULARIES[1:])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_in_the_peak_of_its_row_alone(vocabulary: int, value: float) -> None:
    logits = torch.randn(3, vocabulary)
    logits[1, vocabulary // 3] = value
    assert greedy(logits).peaks_N.isfinite().tolist() == [True, False, True]


def test_logprobs_of_half_precision_are_computed_in_float32() -> None:
    logits = torch.randn(4, 72, dtype=torch.bfloat16)
    expected = logits.float().log_softmax(-1).amax(-1)
    assert torch.allclose(peak_logprobs(logits, logits.amax(-1)), expected, atol=1e-6)
