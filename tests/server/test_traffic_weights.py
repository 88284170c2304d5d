from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from server.frontend.metrics import Metrics
from server.frontend.traffic.traffic import Traffic
from server.frontend.traffic.weights import ShadowPlan, TrafficPlan


@dataclass(frozen=True)
class FakeSupervisor:
    available: bool = True


@dataclass(frozen=True)
class FakeVariant:
    variant: str
    model: str = "m"
    supervisor: FakeSupervisor = field(default_factory=FakeSupervisor)


def chosen(plan: TrafficPlan, variants: Any, session: str | None = None) -> str | None:
    found = plan.choose(variants, session)
    return None if found is None else found.variant


def test_requests_are_divided_by_weight() -> None:
    plan = TrafficPlan(weights={"dense": 90, "pruned": 10, "idle": 0}, shadow=None)
    variants = [FakeVariant(name) for name in ("idle", "dense", "pruned", "unnamed")]
    counts = Counter(chosen(plan, variants) for _ in range(4000))
    assert set(counts) == {"dense", "pruned"}
    assert 250 < counts["pruned"] < 550  # 400 on average; six standard deviations are 114


def test_a_session_stays_with_its_variant() -> None:
    plan = TrafficPlan(weights={"dense": 1, "pruned": 1}, shadow=None)
    variants = [FakeVariant("dense"), FakeVariant("pruned")]
    homes = {session: chosen(plan, variants, session) for session in map(str, range(400))}
    assert all(chosen(plan, variants, session) == home for session, home in homes.items())
    assert 120 < Counter(homes.values())["dense"] < 280
    moved = TrafficPlan(weights={"dense": 1, "pruned": 1.2}, shadow=None)
    stay = sum(chosen(moved, variants, session) == home for session, home in homes.items())
    assert stay > 350  # few move with a small change of the weights


def test_what_is_not_ready_gets_nothing_while_another_is() -> None:
    away = FakeSupervisor(available=False)
    plan = TrafficPlan(weights={"dense": 1, "pruned": 99}, shadow=None)
    assert chosen(plan, [FakeVariant("dense"), FakeVariant("pruned", supervisor=away)]) == "dense"
    assert chosen(plan, [FakeVariant("pruned", supervisor=away)]) == "pruned"
    assert chosen(plan, [FakeVariant("other")]) is None
    assert chosen(TrafficPlan(weights={}, shadow=ShadowPlan(source="a", target="b", fraction=1.0)), []) is None


@pytest.mark.parametrize("session", [None, "x"])
def test_one_weight_takes_all(session: str | None) -> None:
    plan = TrafficPlan(weights={"pruned": 0.001}, shadow=None)
    variants = [FakeVariant("dense"), FakeVariant("pruned")]
    assert {chosen(plan, variants, session) for _ in range(50)} == {"pruned"}


def test_a_bare_name_means_what_has_been_loaded_while_its_default_loads() -> None:
    def loaded(variant: str, *, is_default: bool, reported: object) -> Any:
        supervisor = SimpleNamespace(reported=reported)
        names = {"model": "g2p", "variant": variant, "ref": f"g2p@{variant}", "version": None, "digest": None}
        return SimpleNamespace(**names, is_default=is_default, supervisor=supervisor)

    old, new = loaded("live", is_default=False, reported=object()), loaded("dense", is_default=True, reported=None)
    first, second = old.supervisor, new.supervisor
    traffic = Traffic(Metrics(CollectorRegistry()), lambda: [old, new], lambda: False)
    assert traffic.choose("g2p", None) is old
    assert traffic.choose("g2p@dense", None) is new
    second.reported = object()
    assert traffic.choose("g2p", None) is new
    first.reported = second.reported = None
    assert traffic.choose("g2p", None) is new
