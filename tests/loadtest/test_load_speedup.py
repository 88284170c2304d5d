"""Ratios and their bootstrap intervals."""

import numpy as np
import pytest

from loadtest.results.figures import Floats
from loadtest.results.speedup import MIN_BLOCKS, STATISTICS, Sample, speedup

Made = tuple[Floats, Floats]


def requests(seconds: int, a_second: int, seed: int, *, scale: float = 1.0, shared: float = 0.0) -> Made:
    """Latencies and when they were due; `shared` is how much whole seconds differ."""
    mood = np.exp(np.random.default_rng(99).normal(0, shared, size=seconds))
    draw = np.random.default_rng(seed)
    at_s = np.sort(draw.uniform(0, seconds, size=seconds * a_second))
    values = draw.gamma(9, 1, size=len(at_s)) * mood[np.floor(at_s).astype(int)] * scale
    return values, at_s


def test_statistics_of_repeated_blocks_are_numpys() -> None:
    draw = np.random.default_rng(4)
    for _ in range(50):
        n = int(draw.integers(1, 60))
        at_s = draw.uniform(0, 7, size=n)
        values = draw.normal(10, 3, size=n)
        repeats = draw.integers(0, 4, size=7)
        written_out = np.repeat(values, repeats[np.floor(at_s).astype(int)])
        found = Sample.of(values, at_s).statistics(repeats)
        if len(written_out) == 0:
            assert np.isnan(found).all()
        else:
            expected = [written_out.mean(), *np.percentile(written_out, [50, 95, 99])]
            assert found == pytest.approx(expected, rel=1e-12)


def test_a_ratio_by_hand() -> None:
    at_s = np.array([0.1, 0.2, 1.1])
    found = speedup(
        Sample.of(np.array([10.0, 20.0, 60.0]), at_s), Sample.of(np.array([5.0, 5.0, 20.0]), at_s), blocks=2, seed=0
    )
    assert found is not None
    assert found["mean"] == {"ratio": 3.0, "low": None, "high": None}  # two blocks are no basis for an interval
    assert found["p50"]["ratio"] == 4.0
    assert tuple(found) == STATISTICS


def test_the_interval_holds_the_true_ratio_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.results.speedup.RESAMPLES", 400)
    held, runs = 0, 40
    for seed in range(runs):
        dense = Sample.of(*requests(20, 10, 2 * seed, shared=0.3))
        pruned = Sample.of(*requests(20, 10, 2 * seed + 1, scale=0.5, shared=0.3))
        found = speedup(dense, pruned, blocks=20, seed=0)
        assert found is not None
        held += found["mean"]["low"] <= 2.0 <= found["mean"]["high"]
        assert found["mean"]["low"] < found["mean"]["ratio"] < found["mean"]["high"]
    assert 0.85 * runs <= held <= runs


def test_what_both_variants_share_does_not_widen_the_interval() -> None:
    """Blocks are drawn for both at once: a slow second slows both, and the ratio stays."""

    def width(shared: float) -> float:
        dense, pruned = requests(40, 40, 0, shared=shared), requests(40, 40, 1, scale=0.5, shared=shared)
        found = speedup(Sample.of(*dense), Sample.of(*pruned), blocks=40, seed=0)
        assert found is not None
        return float(found["mean"]["high"] - found["mean"]["low"])

    assert width(0.5) < 3 * width(0.0)


def test_blocks_widen_the_interval_where_seconds_differ() -> None:
    """One variant alone has slow seconds: single requests drawn independently would not see it."""
    steady, at_s = requests(40, 40, 0)
    moody = requests(40, 40, 1, shared=0.5)
    by_second = speedup(Sample.of(steady, at_s), Sample.of(*moody), blocks=40, seed=0)
    n = len(moody[0])
    # Every request in a block of its own is the ordinary bootstrap.
    alone = speedup(
        Sample.of(steady, np.arange(n, dtype=float)), Sample.of(moody[0], np.arange(n, dtype=float)), blocks=n, seed=0
    )
    assert by_second is not None
    assert alone is not None
    wide = by_second["mean"]["high"] - by_second["mean"]["low"]
    assert wide > 2 * (alone["mean"]["high"] - alone["mean"]["low"])


def test_the_seed_decides_the_interval() -> None:
    dense, pruned = Sample.of(*requests(20, 10, 0)), Sample.of(*requests(20, 10, 1))
    first = speedup(dense, pruned, blocks=20, seed=1)
    assert first == speedup(dense, pruned, blocks=20, seed=1)
    assert first != speedup(dense, pruned, blocks=20, seed=2)


def test_seconds_without_an_answer_are_no_trouble() -> None:
    rare = Sample.of(np.array([4.0, 5.0, 6.0]), np.array([0.5, 3.5, 9.5]))
    found = speedup(Sample.of(*requests(10, 10, 0)), rare, blocks=MIN_BLOCKS, seed=0)
    assert found is not None
    assert all(np.isfinite([each["low"], each["high"]]).all() for each in found.values())


def test_a_variant_without_an_answer_has_no_ratio() -> None:
    nothing = Sample.of(np.array([]), np.array([]))
    some = Sample.of(*requests(20, 10, 0))
    assert speedup(some, nothing, blocks=20, seed=0) is None
    assert speedup(nothing, some, blocks=20, seed=0) is None


@pytest.mark.parametrize("zeros", [20, 19, 11])
def test_times_of_nothing_have_no_ratio(zeros: int) -> None:
    at_s = np.arange(20.0)
    values = np.where(np.arange(20) < zeros, 0.0, 5.0)
    for baseline, variant in ((values, values), (at_s + 1, values), (values, at_s + 1)):
        assert speedup(Sample.of(baseline, at_s), Sample.of(variant, at_s), blocks=20, seed=0) is None


def test_draws_without_a_ratio_are_left_out() -> None:
    at_s = np.arange(20.0)
    rare = np.where(np.arange(20) < 8, 0.0, 5.0)  # some draws have a median of 0
    found = speedup(Sample.of(at_s + 1, at_s), Sample.of(rare, at_s), blocks=20, seed=0)
    assert found is not None
    assert all(np.isfinite(list(each.values())).all() for each in found.values())
