"""What becomes of requests whose worker is killed, or stopped, and how soon there is another one."""

import json
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.conduct.exchange import OK, Caller, Exchange, control, counted, outcomes
from benchmarks.loopback import children_of, random_text, serving
from benchmarks.shapes import NAMED

CALLERS = 12  # every third one streams
TOKENS = (8, 64)  # an answer has from so many to so many
REFUSED_S = 1.0  # a caller that was refused waits, as Retry-After says
LONGEST_S = 120.0


def measure(model: str, store: str, *, kills: int, apart_s: float, watchdog_s: float) -> dict[str, Any]:
    """Kill the worker so often, each time so long after it was ready; then stop it once."""
    with serving([model], "--store", store, "--watchdog-s", str(watchdog_s)) as (port, process):
        before = counted(port)
        with _under_load(port) as exchanges:
            deaths = [_end_worker(port, process.pid, signal.SIGKILL, apart_s) for _ in range(kills)]
            stop = _end_worker(port, process.pid, signal.SIGSTOP, apart_s)
            hung = counted(port, "nash_watchdog_kills_total")
            time.sleep(min(2.0, apart_s))
        generations = counted(port) - before
        restarts = counted(port, "nash_worker_restarts_total")
        quarantined = counted(port, "nash_quarantined_total")
    beyond_s = [each["ready_again_s"] - each["load_s"] for each in deaths]
    return {
        "callers": CALLERS,
        "apart_s": apart_s,
        "kills": kills,
        "requests": {"count": len(exchanges), "outcomes": outcomes(exchanges), "generations_counted": generations},
        "in_flight_at_a_kill": _in_flight(exchanges, [each["at_s"] for each in deaths]),
        "ready_again_s": [round(each["ready_again_s"], 2) for each in deaths],
        "load_s": [round(each["load_s"], 2) for each in deaths],
        "beyond_load_s": {"median": round(statistics.median(beyond_s), 2), "most": round(max(beyond_s), 2)},
        "restarts": restarts,
        "quarantined": quarantined,
        "stopped_worker": {
            "watchdog_s": watchdog_s,
            "watchdog_kills": hung,
            "ready_again_s": round(stop["ready_again_s"], 2),
            "load_s": round(stop["load_s"], 2),
            "in_flight": _in_flight(exchanges, [stop["at_s"]]),
        },
    }


def _end_worker(port: int, pid: int, number: signal.Signals, apart_s: float) -> dict[str, float]:
    """Send a signal to the worker, and wait until another one is ready."""
    time.sleep(apart_s)
    (worker,) = children_of(pid)
    at_s = time.perf_counter()
    os.kill(worker, number)
    while children_of(pid) in ([], [worker]) or control(port, "GET", "/health/ready")[0] != 200:
        if time.perf_counter() - at_s > LONGEST_S:
            raise SystemExit(f"no other worker within {LONGEST_S:g} s of {number.name}")
        time.sleep(0.02)
    found = {"at_s": at_s, "ready_again_s": time.perf_counter() - at_s, "load_s": _load_s(port)}
    print(number.name, json.dumps(found), flush=True)
    return found


def _load_s(port: int) -> float:
    return counted(port, "nash_model_load_seconds")


@contextmanager
def _under_load(port: int) -> Iterator[list[Exchange]]:
    """Ask all the time; what is yielded is whole once the block has ended."""
    exchanges: list[Exchange] = []
    ended = threading.Event()

    def ask(number: int) -> None:
        chance, caller = random.Random(number), Caller(port)
        streams = number % 3 == 0
        while not ended.is_set():
            tokens = chance.randint(*TOKENS)
            body = {
                "inputs": random_text(NAMED["g2p"], chance),
                "parameters": {"min_new_tokens": tokens, "max_new_tokens": tokens},
                "stream": streams,
            }
            exchanges.append(done := caller.ask("/generate", body))
            if done.outcome != OK:
                ended.wait(REFUSED_S)
        caller.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield exchanges
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _in_flight(exchanges: Sequence[Exchange], moments_s: Sequence[float]) -> dict[str, Any]:
    """What became of the requests that were open at these moments, by whether their client had got a token."""
    nothing: list[Exchange] = []
    begun: list[Exchange] = []
    under_way: list[Exchange] = []
    for each in exchanges:
        for at_s in (moment for moment in moments_s if each.begun_s < moment < each.ended_s):
            if each.first_s is not None and each.first_s <= at_s:
                begun.append(each)
            elif each.first_s is not None and each.outcome != OK:
                under_way.append(each)  # it was sent before the moment and came after it
            else:
                nothing.append(each)
    return {
        "had_sent_nothing": {"count": len(nothing), "outcomes": outcomes(nothing)}
        | ({"succeeded": sum(each.outcome == OK for each in nothing) / len(nothing)} if nothing else {}),
        "had_begun": outcomes(begun),
        "token_under_way": outcomes(under_way),
    }
