"""`python -m server` as a process: how it starts, and above all how it ends."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.running_server import RunningServer, is_alive, publish_tiny_models

BOTH = ("--model", "tiny@dense,threads=1", "--model", "tiny@pruned,threads=1")
END_S = 5.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_tiny_models(tmp_path_factory.mktemp("served"))


def gone_within(pids: list[int], limit_s: float) -> bool:
    deadline_s = time.monotonic() + limit_s
    while any(is_alive(pid) for pid in pids):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_its_workers_with_zero(store: Path, number: signal.Signals) -> None:
    with RunningServer("--store", str(store), *BOTH) as server:
        workers = server.worker_pids()
        assert len(workers) == 2
        began_s = time.monotonic()
        server.process.send_signal(number)
        assert server.process.wait(END_S) == 0
        assert gone_within(workers, END_S - (time.monotonic() - began_s))


def test_killing_it_leaves_no_worker(store: Path) -> None:
    with RunningServer("--store", str(store), *BOTH) as server:
        workers = server.worker_pids()
        server.process.kill()
        server.process.wait(END_S)
        assert gone_within(workers, END_S)


def test_what_runs_is_finished_before_it_ends_and_nothing_new_is_accepted(store: Path) -> None:
    model = "tiny@pruned,threads=1,slots=2,max_source_tokens=40,max_new_tokens=2000"
    with RunningServer("--store", str(store), "--model", model, "--drain-s", "60") as server:
        body = {"inputs": "b" * 30, "parameters": {"max_new_tokens": 2000}}
        answers: list[httpx.Response] = []
        caller = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{server.url}/generate", json=body, timeout=100))
        )
        with httpx.Client(base_url=server.url, timeout=30) as client:
            caller.start()
            while "nash_requests_running{" not in (text := client.get("/metrics").text) or not any(
                line.startswith("nash_requests_running") and line.endswith(" 1.0") for line in text.splitlines()
            ):
                time.sleep(0.005)
                assert not answers, "it was over before the signal"
            server.process.send_signal(signal.SIGTERM)
            while (ready := client.get("/health/ready")).status_code == 200:
                time.sleep(0.005)
            assert ready.json()["models"] == [{"ref": "tiny@pruned", "state": "draining"}]
            refused = client.post("/generate", json={"inputs": "a"})
            assert (refused.status_code, refused.json()["error_type"]) == (503, "unavailable")
            assert "shutting down" in refused.json()["error"]
            assert not answers
        caller.join(60)
        assert server.process.wait(30) == 0
        assert answers[0].status_code == 200


def test_what_is_not_done_when_the_drain_is_over_is_told_so(store: Path) -> None:
    model = "tiny@pruned,threads=1,slots=2,max_source_tokens=40,max_new_tokens=20000"
    with RunningServer("--store", str(store), "--model", model, "--drain-s", "0.1") as server:
        body = {"inputs": "b" * 30, "parameters": {"max_new_tokens": 20000}}
        with httpx.stream("POST", f"{server.url}/generate_stream", json=body, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line.startswith("data:")][-1]
        assert json.loads(last.removeprefix("data:"))["error_type"] == "unavailable"
        assert server.process.wait(END_S) == 0


def test_a_dead_worker_is_replaced_and_its_callers_never_know(store: Path) -> None:
    with RunningServer("--store", str(store), *BOTH[:2]) as server:
        (worker,) = server.worker_pids()
        os.kill(worker, signal.SIGSTOP)  # so that the request is surely under way when it dies
        answers: list[httpx.Response] = []
        body = {"inputs": "hello"}
        caller = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{server.url}/generate", json=body, timeout=100))
        )
        caller.start()
        time.sleep(0.3)
        os.kill(worker, signal.SIGKILL)
        caller.join(100)
        assert answers[0].status_code == 200
        assert server.worker_pids() != [worker]
        assert 'nash_worker_restarts_total{model="tiny",variant="dense"} 1.0' in httpx.get(f"{server.url}/metrics").text


def ended(*arguments: str) -> tuple[int, str]:
    """The exit code and the last line of a server that does not come up."""
    command = [sys.executable, "-m", "server", "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1]


def test_what_cannot_be_served_is_one_line_and_two(store: Path) -> None:
    code, line = ended("--store", str(store), "--model", "other@dense")
    assert (code, line.startswith("error: ")) == (2, True)
    assert "other" in line
    assert ended()[0] == 2
    assert ended("--store", str(store), "--model", "tiny,slots=x")[0] == 2
    code, line = ended("--store", str(store), "--model", "tiny@dense,dtype=float16")
    assert (code, line) == (
        2,
        "error: model 'tiny@dense': dtype 'float16' is for CUDA devices: use 'bfloat16' or 'float32' on a CPU",
    )


def test_a_set_of_instructions_that_is_not_here_is_one_line_and_two(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NASH_CPU_ISA", "avx10000")
    code, line = ended("--store", str(store), "--model", "tiny@dense")
    assert code == 2
    assert line.startswith("error: model 'tiny@dense': NASH_CPU_ISA is 'avx10000': it must be one of ")


def test_a_model_that_does_not_load_or_a_taken_port_is_one_line_and_one(store: Path) -> None:
    code, line = ended("--store", str(store), "--model", "tiny@dense,slots=10000000", "--model", "tiny@pruned")
    assert (code, line.startswith("error: tiny@dense cannot be loaded: ")) == (1, True), line
    assert "caches of 10000000 slots" in line
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, line = ended("--store", str(store), "--model", "tiny@dense", "--port", port)
        assert code == 1
        assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in line


def test_keys_are_asked_for_where_there_are_some(store: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"infer {hashlib.sha256(b'secret').hexdigest()}\n")
    with RunningServer("--store", str(store), *BOTH[:2], "--api-keys", str(keys)) as server:
        body = {"inputs": "a"}
        refused = httpx.post(f"{server.url}/generate", json=body)
        assert (refused.status_code, refused.json()["error_type"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        allowed = {"authorization": "Bearer secret"}
        assert httpx.post(f"{server.url}/generate", json=body, headers=allowed).status_code == 200
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert httpx.get(f"{server.url}/health/ready").status_code == 200


@pytest.mark.parametrize("module", ["server.__main__", "server.api.app"])
def test_the_api_process_holds_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {{'torch', 'transformers', 'numpy'}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
