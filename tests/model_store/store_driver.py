"""Runs the store in child processes that can be killed, raced and starved; `drive` starts this file as a script.

Reads one JSON request from standard input, forks a child for each job and lets all of them begin at one moment.
Prints the children's results as a JSON list: what the job returned, `"killed"`, or the error's type and text.
Imports no torch, so that a start costs little.

A job is an operation and its arguments. `kill_at` is a point of it: the process kills itself just before, or just
after, its n-th change of the disk or of the object storage. Points are found by counting, so that none is forgotten.
"""

import functools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model_store.errors import ModelStoreError
from model_store.store import Store

ROOT = Path(__file__).parents[2]

DISK_CHANGES = ("link", "mkdir", "replace", "rename", "unlink", "rmdir", "write", "fsync", "utime", "open")
STORAGE_CHANGES = ("put", "copy", "delete")


def drive(jobs: list[dict[str, Any]], *, timeout_s: float = 300, at_once: int | None = None) -> list[Any]:
    """What became of each job. All of them begin at one moment, or `at_once` of them at a time."""
    done = subprocess.run(
        [sys.executable, __file__, str(at_once or len(jobs) or 1)],
        input=json.dumps(jobs),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    results: list[Any] = json.loads(done.stdout)
    return results


class Points:
    """Counts this process's changes to what lasts, and kills it at one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at = kill_at
        self.passed = 0

    def watch(self) -> None:
        """Count from here on."""
        for name in DISK_CHANGES:
            setattr(os, name, self._counted(getattr(os, name)))
        if "obstore" in sys.modules:
            for name in STORAGE_CHANGES:
                setattr(sys.modules["obstore"], name, self._counted(getattr(sys.modules["obstore"], name)))

    def _counted(self, change: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(change)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._pass()
            try:
                return change(*args, **kwargs)
            finally:
                if change.__module__ != "posix":
                    self._pass()  # far away, the change may have been made and the answer not have come

        return counted

    def _pass(self) -> None:
        if self.passed == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1


def perform(store: Store, job: dict[str, Any]) -> object:
    """Run the job's operation; its result as JSON."""
    name = job.get("name", "g2p")
    match job["op"]:
        case "publish":
            published = store.publish(
                name, Path(job["directory"]), alias=job.get("alias"), metrics=job.get("metrics", {})
            )
            return [published.version, published.digest, published.created]
        case "publish many":
            return [
                store.publish(
                    name, Path(job["directory"]), alias=job.get("alias"), metrics={"writer": job["writer"], "n": n}
                ).version
                for n in range(job["times"])
            ]
        case "checkout":
            return str(store.checkout(job["ref"]))
        case "tag":
            return store.tag(job["ref"], job["alias"]).version
        case "tag many":
            return [store.tag(ref, job["alias"]).version for ref in job["refs"]]
        case "untag":
            return store.untag(name, job["alias"])
        case "rollback":
            return store.rollback(name, job["alias"]).version
        case "rm":
            return store.remove(job["ref"]).version
        case "gc":
            return len(store.collect(**({"grace_seconds": job["grace_s"]} if "grace_s" in job else {})))
        case "gc until":
            collected = 0
            while not Path(job["until"]).exists():
                collected += len(store.collect())
                time.sleep(0.001)
            return collected
        case "copy":
            return store.copy_to(Store(job["target"]), job["ref"], alias=job.get("alias")).version
        case _:
            raise ValueError(job["op"])


def run_job(job: dict[str, Any]) -> object:
    if "file_limit_bytes" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit_bytes"],) * 2)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if "uid" in job:
        os.setgid(job["uid"])
        os.setuid(job["uid"])
    if "s3" in job:
        os.environ.update(job["s3"])
    store = Store(job["store"])
    if "target" in job:
        Store(job["target"])  # so that its library is there to be watched
    points = Points(job.get("kill_at"))
    points.watch()
    result = perform(store, job)
    return {"points": points.passed} if job.get("count") else result


def child(job: dict[str, Any], start: int, result: int) -> None:
    os.read(start, 1)  # returns once the parent has closed its end
    write = os.write
    try:
        answer = run_job(job)
    except ModelStoreError as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    write(result, json.dumps(answer).encode())


def run_together(jobs: list[dict[str, Any]]) -> list[object]:
    start_read, start_write = os.pipe()
    children = []
    for job in jobs:
        result_read, result_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(start_write)
            exit_now, code = os._exit, 1
            try:
                child(job, start_read, result_write)
                code = 0
            finally:
                exit_now(code)
        os.close(result_write)
        children.append((pid, result_read))
    os.close(start_read)
    os.close(start_write)
    results: list[object] = []
    for pid, result_read in children:
        with os.fdopen(result_read, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        results.append("killed" if killed else json.loads(answer or b'"crashed"'))
    return results


def main() -> None:
    jobs, at_once = json.load(sys.stdin), int(sys.argv[1])
    results: list[object] = []
    for first in range(0, len(jobs), at_once):
        results += run_together(jobs[first : first + at_once])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
