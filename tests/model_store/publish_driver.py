"""Runs the store in child processes that can be killed, raced and starved; `drive` starts this file as a script.

Reads one JSON request from standard input, forks a child for each job and lets all of them begin at one moment.
Prints the children's results as a JSON list: what the job returned, `"killed"`, or the error's type and text.
Imports no torch, so that a start costs little.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from model_store.errors import ModelStoreError
from model_store.store import Store

ROOT = Path(__file__).parents[2]


def drive(jobs: list[dict[str, Any]]) -> list[Any]:
    """What became of each job; all of them begin at one moment."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    results: list[Any] = json.loads(done.stdout)
    return results


def run_job(job: dict[str, Any]) -> object:
    root, directory = Path(job["store"]), Path(job["directory"])
    if "file_limit_bytes" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit_bytes"],) * 2)
    if "uid" in job:
        os.setgid(job["uid"])
        os.setuid(job["uid"])
    if "checkout" in job:
        return str(Store(root).checkout(job["checkout"]))

    def on_step(step: str) -> None:
        if step == job.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    published = Store(root, on_step=on_step).publish(
        job["name"], directory, alias=job.get("alias"), metrics=job.get("metrics", {})
    )
    return [published.version, published.digest, published.created]


def child(job: dict[str, Any], start: int, result: int) -> None:
    os.read(start, 1)  # returns once the parent has closed its end
    try:
        answer = run_job(job)
    except ModelStoreError as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    os.write(result, json.dumps(answer).encode())


def main() -> None:
    jobs = json.load(sys.stdin)
    start_read, start_write = os.pipe()
    children = []
    for job in jobs:
        result_read, result_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(start_write)
            child(job, start_read, result_write)
            os._exit(0)
        os.close(result_write)
        children.append((pid, result_read))
    os.close(start_write)
    results: list[object] = []
    for pid, result_read in children:
        with os.fdopen(result_read, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        results.append("killed" if killed else json.loads(answer))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
