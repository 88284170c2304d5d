"""The benchmark of conduct in miniature: a real server, few clients, few requests."""

import json
from pathlib import Path

import pytest

from benchmarks.conduct import __main__ as conduct

TINY = ["--phase-s", "0.5", "--connections", "5", "--header-bytes", "1000000", "--kills", "1", "--apart-s", "1"]
TINY += ["--watchdog-s", "1", "--changes", "3", "--requests", "60", "--swap-every", "100"]


def test_clients_that_do_wrong_cost_the_others_no_request(tmp_path: Path) -> None:
    out = tmp_path / "conduct.json"
    out.write_text(json.dumps({"soak": {"kept": True}}))
    conduct.main(["--stages", "clients", *TINY, "--note", "a test", "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["soak"] == {"kept": True}
    clients = result["clients"]
    assert clients["note"] == "a test"
    assert clients["workers_at_the_end"] == 1
    for phase in clients["phases"].values():
        for who in ("health", "bare_server", "small"):
            assert phase[who]["count"] > 0
            assert phase[who]["failures"] == {}
            assert 0 < phase[who]["p50_ms"] <= phase[who]["p99_ms"] <= phase[who]["max_ms"]
    seen = {name: phase["clients_saw"] for name, phase in clients["phases"].items()}
    assert "422" in seen["twelve_1mb_texts"]
    assert seen["one_large_header"]
    assert set(seen["one_large_header"]) <= {
        "431",
        "ConnectionResetError",
        "BrokenPipeError",
    }  # it may be lost
    assert seen["half_open"]["connected"] == seen["slowloris"]["connected"] == 5


@pytest.mark.slow
def test_every_request_has_one_end_whatever_dies_or_changes(tmp_path: Path) -> None:
    out = tmp_path / "conduct.json"
    conduct.main(["--stages", "deaths", "changes", "soak", *TINY, "--out", str(out)])
    result = json.loads(out.read_text())
    deaths, changes, soak = result["deaths"], result["changes"], result["soak"]
    assert set(deaths["requests"]["outcomes"]) <= {"ok", "503", "error event"}
    assert deaths["requests"]["count"] == deaths["requests"]["generations_counted"]
    # One that was on its way to the server is refused.
    assert set(deaths["in_flight_at_a_kill"]["had_sent_nothing"]["outcomes"]) <= {"ok", "503"}
    assert (deaths["restarts"], deaths["stopped_worker"]["watchdog_kills"]) == (2, 1)
    assert changes["changes"] == {"swap": 1, "load": 1, "unload": 1}
    assert changes["failed"] == 0
    assert changes["at_the_end"]["processes"] == changes["after_a_tenth"]["processes"] == 2
    assert soak["requests"] == sum(soak["outcomes"].values()) == 60
    assert set(soak["outcomes"]) <= {"ok", "cancelled"}
    assert soak["generations"] == soak["generations_counted"]
