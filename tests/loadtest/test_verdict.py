"""Which runs may not be believed."""

from typing import Any

import pytest

from loadtest.results.verdict import judge, lag_limits

SPREAD = {"mean": 10.0, "p50": 10.0, "p90": 15.0, "p95": 20.0, "p99": 40.0, "max": 90.0}


def figures(name: str, *, factor: float = 1.0, ok: int = 100, failed: dict[str, int] | None = None) -> dict[str, Any]:
    latency = {q: value / factor for q, value in SPREAD.items()} if ok else None
    failed = failed or {}
    return {"name": name, "n": ok + sum(failed.values()), "ok": ok, "failed": failed, "latency_ms": latency}


BOTH = [figures("dense"), figures("pruned", factor=2.0)]


def lag(p50: float = 0.0, p95: float = 0.0, p99: float = 0.0) -> dict[str, float]:
    return {"mean": 0.0, "p50": p50, "p90": 0.0, "p95": p95, "p99": p99, "max": 1e6}


def test_the_limit_is_a_tenth_of_the_fastest_variant() -> None:
    assert lag_limits([each["latency_ms"] for each in BOTH]) == {
        "p50": pytest.approx(0.5),
        "p95": pytest.approx(1.0),
        "p99": pytest.approx(2.0),
    }


def test_a_run_that_kept_its_schedule_stands() -> None:
    assert judge(BOTH, lag(0.49, 0.99, 1.99)).ok
    assert judge(BOTH, lag(0.49, 0.99, 1.99)).line() == ""


@pytest.mark.parametrize(("late", "named"), [(lag(p50=0.51), "p50"), (lag(p95=1.01), "p95"), (lag(p99=2.01), "p99")])
def test_lag_at_any_of_three_percentiles_voids_a_run(late: dict[str, float], named: str) -> None:
    verdict = judge(BOTH, late)
    assert not verdict.ok
    assert verdict.void is not None
    assert verdict.void.startswith(f"void: {named} of the client's lag")
    assert "lower --rate" in verdict.line()


def test_a_closed_loop_has_no_schedule() -> None:
    assert judge(BOTH, None).ok


def test_failures_and_silent_variants_are_problems() -> None:
    silent = figures("pruned", ok=0, failed={"connection": 3})
    verdict = judge([figures("dense", failed={"overloaded": 2}), silent], lag())
    assert verdict.void is None
    assert verdict.problems == (
        "pruned answered no request",
        "5 of 105 requests failed (connection, overloaded)",
    )
    assert not verdict.ok


def test_a_variant_that_was_asked_nothing_is_not_to_blame() -> None:
    for lag_ms in (None, lag()):
        assert judge([figures("dense", ok=0)], lag_ms).line() == (
            "dense was sent no request in the measured time: give a longer --duration, or more load"
        )


def test_where_nothing_was_answered_a_second_is_too_late() -> None:
    nothing = [figures("dense", ok=0, failed={"too_many_in_flight": 10})]
    assert judge(nothing, lag(p50=999.0)).void is None
    void = judge(nothing, lag(p50=1001.0)).void
    assert void is not None
    assert "p50 of the client's lag behind its schedule is 1001.00 ms" in void


def test_trouble_with_the_run_is_a_problem() -> None:
    assert judge(BOTH, None, troubles=["Locust died"]).problems == ("Locust died",)
