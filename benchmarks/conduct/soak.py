"""Whether memory grows over many requests of all kinds, and whether each has one end."""

import json
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.conduct.changes import change
from benchmarks.conduct.exchange import Caller, Exchange, counted, outcomes
from benchmarks.loopback import children_of, memory_bytes, random_text, serving
from benchmarks.shapes import NAMED
from model_store.store import Store

CALLERS = 12
WARM_PART = 0.1  # of the requests, before the memory is first looked at
MODELS = ("g2p@live", "g2p@steady")
SHARES = {  # percent
    "unary": 30,
    "list": 5,
    "stream": 20,
    "beams": 10,
    "sampled": 10,
    "left stream": 8,
    "left before the answer": 2,
    "completion": 5,
    "completion stream": 5,
    "compare": 5,
}


def measure(store: str, *, requests: int, swap_every: int, at_most_s: float) -> dict[str, Any]:
    """Send so many requests, if there is time; `g2p@live` is swapped now and then, `g2p@steady` keeps its worker."""
    warm = max(1, round(WARM_PART * requests))
    swaps = set(range(warm // 2, requests, swap_every))
    with serving(MODELS, "--store", store) as (port, process):
        before = counted(port)
        begun_s = time.perf_counter()
        end_s = begun_s + at_most_s
        kinds: Counter[str] = Counter()
        swapped = 0
        exchanges: list[Exchange] = []
        looks = []
        numbers = iter(range(requests))
        taking, changing = threading.Lock(), threading.Lock()

        def ask(stop: int) -> None:
            nonlocal swapped
            caller = Caller(port)
            while True:
                with taking:
                    number = next(numbers, None) if len(exchanges) < stop and time.perf_counter() < end_s else None
                if number is None:
                    break
                if number in swaps:
                    caller.close()  # the server would: it is idle for long
                    with changing:
                        change(port, Store(store), "swap", sorted(swaps).index(number))
                        swapped += 1
                kind, path, body, options = _request(random.Random(number))
                done = caller.ask(path, body, **options)
                with taking:
                    kinds[kind] += 1
                    exchanges.append(done)
            caller.close()

        for stop in (warm, requests):
            with ThreadPoolExecutor(CALLERS) as pool:
                list(pool.map(ask, CALLERS * [stop]))
            time.sleep(1.0)
            looks.append(_look(process.pid) | {"requests": len(exchanges)})
            print(json.dumps(looks[-1]), flush=True)
        generations = counted(port) - before
        took_s = time.perf_counter() - begun_s
    return {
        "callers": CALLERS,
        "requests_asked": requests,
        "requests": len(exchanges),
        "kinds": dict(kinds),
        "swaps": swapped,
        "requests_a_second": round(len(exchanges) / took_s, 1),
        "outcomes": outcomes(exchanges),
        "generations": sum(each.generations for each in exchanges),
        "generations_counted": generations,
        "after_a_tenth": looks[0],
        "at_the_end": looks[1],
        "growth": {name: round(looks[1][name] / looks[0][name] - 1, 4) for name in looks[0] if name.endswith("_mb")},
    }


def _look(pid: int) -> dict[str, Any]:
    """Anonymous memory of each process. The worker that was started first is the one that is never swapped."""
    steady, live = children_of(pid)
    pids = {"api": pid, "steady_worker": steady, "swapped_worker": live}
    return {f"{name}_anonymous_mb": round(memory_bytes(each, "RssAnon") / 1e6, 2) for name, each in pids.items()}


def _request(chance: random.Random) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """A request of some kind: its name, path, body, and what is special about how it is sent."""
    (kind,) = chance.choices(list(SHARES), weights=list(SHARES.values()))
    texts = [random_text(NAMED["g2p"], chance) for _ in range(4)]
    tokens = chance.randint(8, 32)
    length = {"min_new_tokens": tokens, "max_new_tokens": tokens}
    body: dict[str, Any] = {"inputs": texts[0], "model": chance.choice(MODELS), "parameters": length}
    match kind:
        case "list":
            return kind, "/generate", body | {"inputs": texts}, {"generations": len(texts)}
        case "stream":
            return kind, "/generate", body | {"stream": True}, {}
        case "beams":
            return kind, "/generate", body | {"parameters": length | {"num_beams": chance.choice((2, 4, 8))}}, {}
        case "sampled":
            sampling = {"do_sample": True, "temperature": 0.8, "top_k": 20, "num_return_sequences": 2, "details": True}
            return kind, "/generate", body | {"parameters": length | sampling}, {}
        case "left stream":
            return kind, "/generate", body | {"stream": True}, {"leave_after": chance.randint(1, 8)}
        case "left before the answer":
            return kind, "/generate", body, {"leave_after": 0}
        case "completion" | "completion stream":
            asked = {"model": body["model"], "prompt": texts[0], "max_tokens": tokens, "stream": kind.endswith("m")}
            return kind, "/v1/completions", asked, {}
        case "compare":
            asked = {"inputs": texts[0], "models": list(MODELS), "parameters": length, "stream": chance.random() < 0.5}
            return kind, "/compare", asked, {"generations": len(MODELS)}
    return kind, "/generate", body, {}
