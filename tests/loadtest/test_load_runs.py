"""Whole runs: Locust, a real server over tiny models, and the report. Nothing here asserts a time."""

import csv
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.running_server import RunningServer, is_alive

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60
ENOUGH_ROWS = 15
WORDS = ("hello world", "a quick brown fox", "one", "two", "jumps over the lazy dog")


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    file = tmp_path / "w.jsonl"
    file.write_text("".join(json.dumps({"source": word}) + "\n" for word in WORDS))
    return file


def counted(server: RunningServer) -> Counter[tuple[str, str]]:
    """The server's own count of requests, by variant and outcome."""
    with urllib.request.urlopen(f"{server.url}/metrics") as response:
        text = response.read().decode()
    found = re.findall(r"^nash_requests_total\{(.*?)\} (\S+)$", text, re.MULTILINE)
    labels = [(dict(re.findall(r'(\w+)="(.*?)"', label)), float(value)) for label, value in found]
    return Counter({(label["variant"], label["outcome"]): int(value) for label, value in labels if value})


# As `python -m loadtest`, without the load after the measured time: nothing here depends on it.
QUICKLY = (
    "import loadtest.client.locust_process as locust; locust.RUN_ON_S = 0; from loadtest.__main__ import main; main()"
)


def command(server: RunningServer, workload: Path, out: Path, *options: str) -> list[str]:
    known = ["--host", server.url, "--workload", str(workload), "--out", str(out), "--warmup", "0"]
    return [sys.executable, "-c", QUICKLY, *known, *options]


def run_until_measured(
    server: RunningServer, workload: Path, out: Path, *options: str
) -> tuple[subprocess.CompletedProcess[str], Counter[tuple[str, str]]]:
    """A run of a second, and what the server counted in it.

    It is one of four seconds, or of sixteen, where the machine is so busy that few requests ended in that time.
    """
    for seconds in (1, 4, 16):
        shutil.rmtree(out, ignore_errors=True)
        before = counted(server)
        done = subprocess.run(
            command(server, workload, out, *options, "--duration", str(seconds)),
            cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        if (out / "requests.csv.gz").exists() and len(rows_of(out)) >= ENOUGH_ROWS:
            break
    return done, counted(server) - before


def rows_of(out: Path) -> list[dict[str, str]]:
    with gzip.open(out / "requests.csv.gz", "rt", encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def by_variant(rows: list[dict[str, str]]) -> Counter[tuple[str, str]]:
    return Counter((row["variant"], row["outcome"]) for row in rows)


def report_of(out: Path) -> Any:
    assert {file.name for file in out.iterdir()} == {"summary.json", "report.html", "requests.csv.gz", "locust.log"}
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    return json.loads((out / "summary.json").read_text())


def wait_for(rows: Path, least: int) -> None:
    """Until so many rows have been written."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if rows.exists() and rows.read_bytes().count(b"\n") > least:
            return
        time.sleep(0.05)
    raise AssertionError(f"{rows} did not grow")


def locust_pids(out: Path) -> list[int]:
    """The processes whose command line names the run's rows, the parent's apart."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(out / "requests.csv").encode() in arguments:
                found.append(int(entry.name))
    return found


def test_a_closed_loop_has_a_row_for_every_request_that_the_server_counted(
    server: RunningServer, workload: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done, in_server = run_until_measured(server, workload, out, "--users", "3", "--json")
    assert done.returncode == 0, done.stderr
    summary, rows = report_of(out), rows_of(out)
    assert json.loads(done.stdout) == summary
    assert by_variant(rows) == in_server
    assert set(by_variant(rows)) == {("dense", "ok"), ("pruned", "ok")}
    assert summary["requests"]["all"] == len(rows)
    assert summary["measured_s"] in (1.0, 4.0, 16.0)
    assert sum(figures["n"] for figures in summary["variants"]) == summary["requests"]["measured"] > 0
    assert summary["baseline"] == "tiny@dense"
    assert summary["plan"]["users"] == 3
    assert {model["ref"]: len(model["digest"]) > 10 for model in summary["server"]["models"]} == {
        "tiny@dense": True,
        "tiny@pruned": True,
    }
    for row in rows:
        assert row["lag_ms"] == "0.000"
        assert row["latency_ms"] == row["service_ms"]
        assert float(row["total_ms"]) > 0
        assert 1 <= int(row["generated_tokens"]) <= 12
    # All variants see the same texts in the same order. Rows stand in the order of the answers.
    texts = {name: [r["input"] for r in sent_in_order(rows) if r["variant"] == name] for name in ("dense", "pruned")}
    few = min(map(len, texts.values())) // 5 * 5
    assert few >= 5
    assert Counter(texts["dense"][:few]) == Counter(texts["pruned"][:few]) == dict.fromkeys("01234", few // 5)


def sent_in_order(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return sorted(rows, key=lambda row: float(row["intended_s"]))


def test_an_open_loop_keeps_the_seeds_schedule(server: RunningServer, workload: Path, tmp_path: Path) -> None:
    from itertools import islice

    from loadtest.client.schedule import RequestOrder, poisson_arrivals
    from loadtest.client.workload import read_workload

    out = tmp_path / "out"
    options = ["--rate", "30", "--seed", "5", "--model", "tiny@pruned,weight=2", "--model", "tiny@dense"]
    done, in_server = run_until_measured(server, workload, out, *options, "--max-new-tokens", "4")
    summary, rows = report_of(out), sent_in_order(rows_of(out))
    void = summary["verdict"]["void"]  # on a busy machine the client may be late, which is not the question here
    assert done.returncode == (1 if void else 0), done.stderr
    assert ("error: void: " in done.stderr) == bool(void)
    assert by_variant(rows) == in_server
    assert summary["baseline"] == "tiny@dense"
    assert summary["plan"]["loop"] == "open"
    assert summary["lag_ms"].keys() >= {"p50", "p95", "p99"}
    due = [float(row["intended_s"]) for row in rows]
    assert due == pytest.approx(list(islice(poisson_arrivals(30.0, 5), len(rows))), abs=1e-6)
    order = RequestOrder(read_workload(workload), [2.0, 1.0], seed=5)
    assert [(row["variant"], int(row["input"])) for row in rows] == [
        (("pruned", "dense")[variant], text) for variant, text in (next(order) for _ in rows)
    ]
    for row in rows:
        # Three roundings to the microsecond.
        assert float(row["latency_ms"]) == pytest.approx(float(row["lag_ms"]) + float(row["service_ms"]), abs=0.002)
        assert float(row["lag_ms"]) >= 0
        assert int(row["generated_tokens"]) <= 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_locust_and_reports_what_was_measured(
    server: RunningServer, workload: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out, before = tmp_path / "out", counted(server)
    with subprocess.Popen(
        command(server, workload, out, "--users", "2", "--duration", "10m"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        wait_for(out / "requests.csv", 20)
        (locust,) = locust_pids(out)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, err
    assert "interrupted: waiting for the requests in flight" in err
    assert not is_alive(locust)
    summary, rows = report_of(out), rows_of(out)
    assert summary["interrupted"] is True
    assert 0 < summary["measured_s"] < 600
    assert "Interrupted: " in (out / "report.html").read_text(encoding="utf-8")
    # Requests under way were waited for: none is lost, none is cut off.
    assert by_variant(rows) == counted(server) - before
    assert {row["outcome"] for row in rows} == {"ok"}


def test_locust_does_not_outlive_a_parent_that_is_killed(server: RunningServer, workload: Path, tmp_path: Path) -> None:
    """Not even where it has so much to send that it is always behind."""
    out = tmp_path / "out"
    with subprocess.Popen(
        command(server, workload, out, "--rate", "100000", "--duration", "10m"),
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        wait_for(out / "requests.csv", 20)
        (locust,) = locust_pids(out)
        process.kill()
    deadline = time.monotonic() + PATIENCE_S
    while is_alive(locust):
        assert time.monotonic() < deadline, "Locust is still there"
        time.sleep(0.1)


def test_what_a_killed_locust_had_recorded_is_reported(server: RunningServer, workload: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        command(server, workload, out, "--users", "2", "--duration", "10m"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        wait_for(out / "requests.csv", 20)
        (locust,) = locust_pids(out)
        os.kill(locust, signal.SIGSTOP)
        with (out / "requests.csv").open("ab") as rows:
            rows.write(b"1.25,0.0\n")  # what a disk that fails may leave
        os.kill(locust, signal.SIGKILL)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, err
    assert "error: Locust was ended by SIGKILL" in err
    assert "this report has only what it had recorded by then" in err
    assert "lines of requests.csv that could not be read: 1; this report lacks at least as many requests" in err
    assert "Traceback" not in err
    summary = report_of(out)
    assert summary["requests"]["all"] == len(rows_of(out)) - 1 >= 20
    assert summary["interrupted"] is False
    assert 0 < summary["measured_s"] < 600
    assert not summary["verdict"]["ok"]


def test_a_full_disk_is_named_and_leaves_no_empty_report(server: RunningServer, workload: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = command(server, workload, out, "--users", "2", "--duration", "4")
    program = f"""
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
os.execv(sys.executable, {whole!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {out}/summary.json cannot be written (File too large)")
    assert "Traceback" not in done.stderr
    assert {file.name for file in out.iterdir()} == {"requests.csv", "locust.log"}
    assert re.search(r"^error: \d+ requests could not be recorded \(File too large\)", (out / "locust.log").read_text())


def test_failed_requests_are_reported_and_end_with_1(server: RunningServer, tmp_path: Path) -> None:
    workload, out = tmp_path / "w.jsonl", tmp_path / "out"
    workload.write_text(json.dumps({"source": "one"}) + "\n" + json.dumps({"source": "x" * 100}) + "\n")
    done, in_server = run_until_measured(server, workload, out, "--users", "2")
    assert done.returncode == 1
    summary, rows = report_of(out), rows_of(out)
    n, failed = summary["requests"]["measured"], sum(f["failed"]["validation"] for f in summary["variants"])
    assert f"error: {failed} of {n} requests failed (validation)" in done.stderr
    assert 0 < failed < n
    assert by_variant(rows) == Counter(
        {(v, "validation" if o == "client_error" else o): n for (v, o), n in in_server.items()}
    )
    assert {row["status"] for row in rows} == {"200", "422"}


def test_a_model_that_is_not_loaded_is_named_with_what_is(
    server: RunningServer, workload: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        command(server, workload, tmp_path / "out", "--model", "tiny@other"),
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: model 'tiny@other' is not loaded: use one of tiny@dense, tiny@pruned\n"
    assert not (tmp_path / "out").exists()


def test_arrivals_beyond_the_bound_are_recorded_as_failed(
    server: RunningServer, workload: Path, tmp_path: Path
) -> None:
    """And requests that never end are, too, when the run's patience is over. A client that is always behind stops."""
    rows = tmp_path / "rows.csv"
    program = f"""
import sys, threading, http.server, json, time
class Silent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        model = {{"ref": "a@b", "model": "a", "variant": "b"}}
        body = json.dumps({{"ready": True}} if "health" in self.path else [model]).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        time.sleep(60)
    def log_message(self, *_):
        pass
import loadtest.locustfile as locustfile  # replaces threads by greenlets first
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
locustfile.MAX_IN_FLIGHT = 3
sys.argv = ["locust", "-f", locustfile.__file__, "--headless", "--host", "http://127.0.0.1:%d" % server.server_port,
    "--rate", "100000", "--run-time", "1s", "--stop-timeout", "1", "--workload", {str(workload)!r},
    "--rows", {str(rows)!r}, "ArrivalUser"]
import locust.main
locust.main.load_locustfile = lambda path: ({{"ArrivalUser": locustfile.ArrivalUser}}, [])
locust.main.main()
"""
    subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env={**os.environ, "GEVENT_BACKEND": "select"},
    )  # fmt: skip
    with rows.open(encoding="utf-8", newline="") as lines:
        outcomes = Counter(row["outcome"] for row in csv.DictReader(lines))
    assert outcomes["unfinished"] == 3
    assert outcomes["too_many_in_flight"] > 100
    assert set(outcomes) == {"unfinished", "too_many_in_flight"}
