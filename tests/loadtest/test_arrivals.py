"""When requests are due, to whom they go, and in which order."""

import math
from collections import Counter
from itertools import islice, pairwise

import pytest

from loadtest.client.schedule import RequestOrder, poisson_arrivals, weighted_choices
from loadtest.client.workload import TextWorkload

N = 20_000


def gaps(rate_per_s: float, seed: int) -> list[float]:
    times = [0.0, *islice(poisson_arrivals(rate_per_s, seed), N)]
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.parametrize("rate_per_s", [0.5, 40.0, 3000.0])
def test_gaps_are_exponential_with_the_rates_mean(rate_per_s: float) -> None:
    drawn = sorted(gaps(rate_per_s, seed=7))
    assert sum(drawn) / N == pytest.approx(1 / rate_per_s, rel=3 / math.sqrt(N))
    # Kolmogorov and Smirnov's distance to 1 - exp(-rate x); beyond 1.63 / sqrt(n) lies 1 % of true samples.
    expected = [1 - math.exp(-rate_per_s * gap) for gap in drawn]
    distance = max(max(value - i / N, (i + 1) / N - value) for i, value in enumerate(expected))
    assert distance < 1.63 / math.sqrt(N)


def test_gaps_do_not_depend_on_the_ones_before() -> None:
    drawn = gaps(10.0, seed=3)
    mean = sum(drawn) / N
    covariance = sum((a - mean) * (b - mean) for a, b in pairwise(drawn)) / N
    assert abs(covariance / mean**2) < 3 / math.sqrt(N)


def test_counts_a_second_vary_as_much_as_their_mean() -> None:
    counts = Counter(math.floor(at_s) for at_s in islice(poisson_arrivals(40.0, 5), N))
    seconds = [counts[second] for second in range(max(counts))]  # the last one is cut off
    mean = sum(seconds) / len(seconds)
    variance = sum((count - mean) ** 2 for count in seconds) / len(seconds)
    assert variance / mean == pytest.approx(1.0, abs=0.2)  # a regular schedule would have 0


def test_the_seed_decides_the_schedule() -> None:
    first = list(islice(poisson_arrivals(40.0, 1), 100))
    assert first == list(islice(poisson_arrivals(40.0, 1), 100))
    assert first != list(islice(poisson_arrivals(40.0, 2), 100))
    assert first == sorted(first)


def test_choices_follow_the_weights() -> None:
    counts = Counter(islice(weighted_choices([3.0, 1.0], seed=0), N))
    assert counts[0] / N == pytest.approx(0.75, abs=3 * math.sqrt(0.75 * 0.25 / N))
    assert counts[0] + counts[1] == N
    assert list(islice(weighted_choices([1, 1], 4), 50)) == list(islice(weighted_choices([1, 1], 4), 50))
    assert set(islice(weighted_choices([2.0], 0), 50)) == {0}


def test_every_variant_sees_the_same_texts_in_the_same_order() -> None:
    workload = TextWorkload(name="w", sha256="", sources=tuple("abcdefghij"))
    order = RequestOrder(workload, [5.0, 1.0], seed=2)
    texts: list[list[int]] = [[], []]
    for _ in range(400):
        variant, text = next(order)
        texts[variant].append(text)
    few = min(map(len, texts))
    assert few > 10
    assert texts[0][:few] == texts[1][:few]
    assert sorted(texts[0][:10]) == list(range(10))
    assert texts[0][10:20] == texts[0][:10] != list(range(10))


def test_the_seed_decides_the_order() -> None:
    workload = TextWorkload(name="w", sha256="", sources=tuple("abcdefghij"))
    assert workload.shuffled(0) == workload.shuffled(0) != workload.shuffled(1)
