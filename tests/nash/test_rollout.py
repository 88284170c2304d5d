"""Steering a real server from the command line: `nash admin` and `nash rollout`."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_store.store import Store
from nash.rollout.watching import window
from tests.nash.command_line import Outcome, nash
from tests.running_server import RunningServer
from tests.tiny_models import build_tiny_t5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """`slow` has the answers of `dense` and does more work; `pruned` is fast and answers differently."""
    folder = tmp_path_factory.mktemp("rollout")
    store = Store(folder / "store")
    store.publish("tiny", build_tiny_t5(folder / "a", seed=0), alias="dense")
    store.publish("tiny", build_tiny_t5(folder / "b", seed=3, decoder_layers=1), alias="pruned")
    store.publish("tiny", build_tiny_t5(folder / "a2", seed=0), alias="same", metrics={"n": 1.0})
    refs = [f"--model=tiny@{name},threads=1,slots=4" for name in ("dense", "pruned", "same")]
    with RunningServer("--store", str(store.root), *refs) as running:
        yield running


@contextmanager
def load(server: RunningServer) -> Iterator[None]:
    """Callers who name only the model, with some pause, so that shadows find time."""
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not stop.is_set():
                client.post(
                    "/generate", json={"inputs": "abcdef", "model": "tiny", "parameters": {"max_new_tokens": 20}}
                )
                time.sleep(0.05)

    caller = threading.Thread(target=ask)
    caller.start()
    try:
        yield
    finally:
        stop.set()
        caller.join()


def traffic(server: RunningServer) -> Any:
    return httpx.get(f"{server.url}/models/tiny/traffic").json()


def admin(server: RunningServer, *arguments: str) -> Outcome:
    return nash("admin", *arguments, "--server", server.url)


def test_admin_loads_swaps_and_unloads(server: RunningServer) -> None:
    outcome = admin(server, "load", "tiny:2,threads=1")
    assert (outcome.code, outcome.out.startswith("tiny:2 is ready")) == (0, True), outcome.err
    refused = admin(server, "load", "tiny:2")
    assert (refused.code, "is loaded already" in refused.err) == (2, True)
    assert admin(server, "swap", "tiny@dense").out == "tiny@dense serves that version already\n"
    document = json.loads(admin(server, "unload", "tiny:2", "--json").out)
    assert document["state"] == "draining"
    missing = admin(server, "unload", "tiny@other")
    assert (missing.code, "use one of" in missing.err) == (2, True)
    away = nash("admin", "traffic", "tiny", "--server", "http://127.0.0.1:9")
    assert (away.code, "cannot be reached" in away.err) == (1, True)
    nowhere = nash("admin", "traffic", "tiny", "--server", "ftp://x")
    assert (nowhere.code, "is not an address" in nowhere.err) == (2, True)


def test_admin_divides_the_traffic(server: RunningServer) -> None:
    outcome = admin(server, "traffic", "tiny", "--weight", "dense=90", "--weight", "pruned=10")
    assert outcome.out == "tiny: dense 90, pruned 10\n"
    outcome = admin(server, "traffic", "tiny", "--shadow", "dense:pruned:0.5")
    assert "shadow: 0.5 of the answers of dense on pruned too" in outcome.out
    assert traffic(server)["weights"] == {"dense": 90, "pruned": 10}
    assert "no weights" in admin(server, "traffic", "tiny", "--clear").out
    for wrong, told in (("dense", "write VARIANT=NUMBER"), ("dense=x", "write VARIANT=NUMBER"), ("x=1", "not loaded")):
        refused = admin(server, "traffic", "tiny", "--weight", wrong)
        assert (refused.code, told in refused.err) == (2, True)


def rollout(server: RunningServer, target: str, *arguments: str) -> Outcome:
    steps = ("--steps", "20,100", "--step-s", "1", "--requests", "5", "--patience-s", "60")
    return nash(
        "rollout", "tiny", "--from", "dense", "--to", target, *steps, "--server", server.url, "--json", *arguments
    )


def test_a_rollout_that_goes_through(server: RunningServer, tmp_path: Path) -> None:
    slo = tmp_path / "slo.toml"
    slo.write_text("max_error_ratio = 0.0\np95_ms = 60000\nmin_agreement = 0.99\n")
    with load(server):
        outcome = rollout(server, "same", "--slo", str(slo), "--shadow", "1", "--out", str(tmp_path / "report.json"))
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert [step["percent"] for step in report["steps"]] == [20, 100]
    assert not report["rolled_back"]
    assert all(step["window"]["answered"] >= 5 and step["why"] is None for step in report["steps"])
    assert report["steps"][0]["pairs"] >= 5
    assert report["steps"][0]["agreement"] == 1.0
    assert traffic(server)["weights"] == {"same": 100}
    admin(server, "traffic", "tiny", "--clear")


@pytest.mark.parametrize(
    ("target", "slo", "why"),
    [
        ("pruned", "min_agreement = 0.99", "of the answers agree, 99.0% is the least"),
        ("same", "min_speedup = 100", "times as fast, 100 is the least"),
        ("same", "p95_ms = 0.001", "p95 is"),
    ],
)
def test_a_rollout_that_rolls_back_by_itself(
    target: str, slo: str, why: str, server: RunningServer, tmp_path: Path
) -> None:
    """An injected loss of quality, a slow-down, and answers that take too long."""
    (tmp_path / "slo.toml").write_text(slo)
    admin(server, "traffic", "tiny", "--weight", "dense=1")
    with load(server):
        outcome = rollout(server, target, "--slo", str(tmp_path / "slo.toml"), "--shadow", "1")
    assert outcome.code == 1
    report = json.loads(outcome.out)
    assert report["rolled_back"]
    assert why in report["steps"][-1]["why"]
    assert len(report["steps"]) == 1
    assert traffic(server)["weights"] == {"dense": 1}
    assert traffic(server)["shadow"] is None
    admin(server, "traffic", "tiny", "--clear")


def test_without_requests_it_cannot_judge(server: RunningServer) -> None:
    outcome = nash(
        "rollout", "tiny", "--from", "dense", "--to", "same", "--steps", "50", "--step-s", "1", "--patience-s", "0",
        "--server", server.url,
    )  # fmt: skip
    assert outcome.code == 1
    assert "50 are needed to judge" in outcome.out
    assert traffic(server)["weights"] == {}


@pytest.mark.parametrize(
    ("arguments", "slo", "told"),
    [
        (("--steps", "10,5"), "", "give ascending percentages"),
        (("--steps", "0"), "", "give ascending percentages"),
        (("--steps", "x"), "", "give ascending percentages"),
        ((), "colour = 1", "'colour' is not known: use max_error_ratio"),
        ((), "p95_ms = 'x'", "p95_ms is 'x': give a number"),
        ((), "p95_ms =", "is not TOML"),
        (("--shadow", "0"), "min_speedup = 1", "are judged by the shadow"),
        (("--to", "other"), "", "variant 'other' of tiny is not loaded"),
    ],
)
def test_refusals(arguments: tuple[str, ...], slo: str, told: str, server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "slo.toml").write_text(slo)
    given = ("--slo", str(tmp_path / "slo.toml"), "--server", server.url, *arguments)
    outcome = nash("rollout", "tiny", "--from", "dense", "--to", "pruned", *given)
    assert (outcome.code, told in outcome.err) == (2, True), outcome.err
    assert traffic(server)["weights"] == {}


def test_a_window_is_the_difference_of_two_looks() -> None:
    def sample(name: str, value: float, **labels: str) -> tuple[tuple[str, frozenset[tuple[str, str]]], float]:
        return (name, frozenset({"model": "m", "variant": "v", **labels}.items())), value

    def bucket(le: str, value: float, mode: str = "unary") -> tuple[tuple[str, frozenset[tuple[str, str]]], float]:
        return sample("nash_request_duration_seconds_bucket", value, mode=mode, le=le)

    before = dict(
        [sample("nash_requests_total", 10, outcome="ok"), bucket("0.1", 10), bucket("0.2", 10), bucket("+Inf", 10)]
    )
    after = dict(
        [
            sample("nash_requests_total", 110, outcome="ok"),
            sample("nash_requests_total", 2, outcome="timeout"),
            sample("nash_requests_total", 5, outcome="client_error"),
            bucket("0.1", 100),
            bucket("0.2", 110),
            bucket("+Inf", 110),
            bucket("0.1", 1000, mode="compare"),
        ]
    )
    seen = window(before, after, "m", "v")
    assert (seen.answered, seen.failed) == (100, 2)
    assert seen.error_ratio == pytest.approx(2 / 102)
    assert seen.p95_ms == pytest.approx(150)
    assert window(after, after, "m", "v").p95_ms is None
