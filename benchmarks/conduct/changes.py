"""Whether models that are swapped, loaded and unloaded under load cost a request, or leave something behind."""

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.conduct.exchange import OK, Caller, Exchange, control, counted, outcomes
from benchmarks.loopback import children_of, memory_bytes, random_text, serving
from benchmarks.shapes import NAMED
from model_store.store import Store

CALLERS = 3  # of the variant that is swapped, streaming every second time
WARM_PART = 0.1  # of the changes, before the server is first looked at
SETTLED_S = 2.0


def measure(store: str, *, count: int, at_most_s: float) -> dict[str, Any]:
    """Swap one variant, load another one, unload that, and so on, so many times in all, if there is time."""
    spans_s: dict[str, list[float]] = {"swap": [], "load": [], "unload": []}
    with serving(["g2p@live"], "--store", store) as (port, process):
        looks = []
        end_s = time.perf_counter() + at_most_s
        with _under_load(port) as exchanges:
            for number in range(count):
                kind = list(spans_s)[number % 3]
                begun_s = time.perf_counter()
                change(port, Store(store), kind, number // 3)
                spans_s[kind].append(time.perf_counter() - begun_s)
                last = number + 1 == count or time.perf_counter() > end_s
                if last or number + 1 == max(1, round(WARM_PART * count)):
                    if kind == "load":  # looked at while only one is loaded
                        change(port, Store(store), "unload", number)
                    looks.append(_look(process.pid))
                    print(f"{number + 1} changes", json.dumps(looks[-1]), flush=True)
                    if kind == "load":
                        change(port, Store(store), "load", number)
                if last:
                    break
        generations = counted(port)
    first, final = looks[0], looks[-1]
    return {
        "changes_asked": count,
        "changes": {kind: len(spans) for kind, spans in spans_s.items()},
        "seconds": {kind: round(sum(spans) / len(spans), 2) for kind, spans in spans_s.items() if spans},
        "callers": CALLERS,
        "requests": {"count": len(exchanges), "outcomes": outcomes(exchanges), "generations_counted": generations},
        "failed": sum(each.outcome != OK for each in exchanges),
        "after_a_tenth": first,
        "at_the_end": final,
        "growth": {
            name: round(final[name] / first[name] - 1, 4) for name in ("api_anonymous_mb", "worker_anonymous_mb")
        },
    }


def change(port: int, store: Store, kind: str, turn: int) -> None:
    """One change, to its end: a swap to the other version, or a model that is loaded beside, or gone again."""
    match kind:
        case "swap":
            store.tag(f"g2p:{2 - turn % 2}", "live")
            _expect(200, control(port, "POST", "/models/g2p@live/swap"))
        case "load":
            _expect(201, control(port, "POST", "/models?wait=true", {"model": "g2p@steady,threads=1,dtype=float32"}))
        case "unload":
            _expect(202, control(port, "DELETE", "/models/g2p@steady"))
            while any(each["ref"] == "g2p@steady" for each in control(port, "GET", "/models")[1]):
                time.sleep(0.02)


def _expect(status: int, answered: tuple[int, Any]) -> None:
    if answered[0] != status:
        raise SystemExit(f"the server answered {answered[0]} where {status} was expected: {answered[1]}")


def _look(pid: int) -> dict[str, Any]:
    """What the server holds once the last change has settled."""
    time.sleep(SETTLED_S)
    workers = children_of(pid)
    return {
        "api_anonymous_mb": round(memory_bytes(pid, "RssAnon") / 1e6, 2),
        "worker_anonymous_mb": round(sum(memory_bytes(each, "RssAnon") for each in workers) / 1e6, 2),
        "processes": 1 + len(workers),
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
    }


@contextmanager
def _under_load(port: int) -> Iterator[list[Exchange]]:
    exchanges: list[Exchange] = []
    ended = threading.Event()

    def ask(number: int) -> None:
        chance, caller = random.Random(number), Caller(port)
        while not ended.is_set():
            body = {
                "inputs": random_text(NAMED["g2p"], chance),
                "model": chance.choice(("g2p", "g2p@live")),
                "stream": chance.random() < 0.5,
            }
            exchanges.append(caller.ask("/generate", body))
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
