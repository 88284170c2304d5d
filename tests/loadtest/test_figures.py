"""Counts, rates and percentiles."""

import numpy as np
import pytest

from loadtest.results.figures import failures, lag_figures, spread, variant_figures
from tests.loadtest.rows_of_a_run import records, row


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(0).gamma(2, 3, size=997)
    found = spread(values)
    assert found is not None
    assert {q: found[q] for q in ("p50", "p90", "p95", "p99")} == {
        f"p{q}": pytest.approx(np.quantile(values, q / 100)) for q in (50, 90, 95, 99)
    }
    assert found["mean"] == pytest.approx(values.mean())
    assert found["max"] == values.max()


def test_percentiles_by_hand() -> None:
    assert spread(np.array([4.0, 1.0, 3.0, 2.0, 5.0])) == {
        "mean": 3.0,
        "p50": 3.0,
        "p90": pytest.approx(4.6),
        "p95": pytest.approx(4.8),
        "p99": pytest.approx(4.96),
        "max": 5.0,
    }
    assert spread(np.array([])) is None


def test_failed_requests_are_counted_by_kind_and_in_no_latency() -> None:
    rows = [row(latency_ms=10), row(latency_ms=30), row(latency_ms=5000, outcome="overloaded")]
    rows += [row(outcome="connection"), row(outcome="overloaded")]
    figures = variant_figures(records(rows), duration_s=4.0)
    assert (figures["n"], figures["ok"]) == (5, 2)
    assert list(figures["failed"].items()) == [("overloaded", 2), ("connection", 1)]
    assert figures["latency_ms"]["mean"] == 20.0
    assert figures["latency_ms"]["max"] == 30.0
    assert figures["requests_per_s"] == 0.5
    assert figures["generated_tokens_per_s"] == 2.5
    assert figures["server_total_ms"]["mean"] == 18.0
    assert figures["server_mean_ms"] == {"queue": 4.5, "encode": 4.5, "decode": 9.0}
    assert figures["outside_server_mean_ms"] == 2.0


def test_a_variant_without_an_answer_has_no_figures() -> None:
    figures = variant_figures(records([row(outcome="connection")]), duration_s=2.0)
    assert figures["ok"] == 0
    assert figures["requests_per_s"] == 0.0
    names = ("latency_ms", "server_total_ms", "server_mean_ms", "outside_server_mean_ms", "generated_tokens_per_s")
    assert [figures[name] for name in names] == [None] * len(names)
    assert variant_figures(records([]), duration_s=0.0)["requests_per_s"] is None


def test_tokens_are_not_counted_where_some_are_unknown() -> None:
    figures = variant_figures(records([row(), row(tokens=None)]), duration_s=1.0)
    assert figures["generated_tokens_per_s"] is None


def test_the_warm_up_ends_where_the_measured_time_starts() -> None:
    found = records([row(at_s=at_s) for at_s in (0.0, 4.999, 5.0, 9.999, 10.0)])
    assert found.between(5.0, 10.0).intended_s.tolist() == [5.0, 9.999]


def test_rows_of_one_variant() -> None:
    found = records([row("g2p@dense"), row("g2p@pruned"), row("g2p@pruned", outcome="timeout")])
    assert len(found.of("g2p@pruned")) == 2
    assert len(found.of("g2p@pruned").answered()) == 1
    assert failures(found) == {"timeout": 1}


def test_the_lag_has_failed_requests_too() -> None:
    lag = lag_figures(records([row(lag_ms=1.0), row(lag_ms=3.0, outcome="connection")]))
    assert lag is not None
    assert lag["mean"] == 2.0
    assert lag["max"] == 3.0
