"""How a server behaves when things go wrong, on a model of g2p's shape with random weights.

    python -m benchmarks.conduct --out FILE [--stages clients deaths changes soak]

clients: `/health` and two small callers, alone and beside texts of a megabyte (in waves, with a quarter of a second
between them), a header of 100 MB, connections that say nothing, and ones that send a byte every two seconds.
deaths: the worker is killed again and again under load, then stopped. changes: models are swapped, loaded and unloaded
under load. soak: many requests of all kinds. All processes run on one machine. FILE keeps the stages that are not run.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.conduct import changes, deaths, hostile, soak
from benchmarks.environment import environment
from benchmarks.loopback import save_random
from benchmarks.shapes import NAMED
from model_store.store import Store

SHAPE = NAMED["g2p"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description="Clients that do wrong, dying workers, changes, a soak.")
    stages = ("clients", "deaths", "changes", "soak")
    parser.add_argument("--stages", nargs="+", choices=stages, default=list(stages))
    parser.add_argument("--phase-s", type=float, default=20.0, help="of each phase of clients")
    parser.add_argument("--connections", type=int, default=500, help="that say nothing, and that are slow")
    parser.add_argument("--header-bytes", type=int, default=100_000_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--apart-s", type=float, default=5.0, help="from ready to the next kill")
    parser.add_argument("--watchdog-s", type=float, default=30.0, help="the server's, when its worker is stopped")
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--requests", type=int, default=20_000, help="of the soak")
    parser.add_argument("--swap-every", type=int, default=3000, help="requests of the soak")
    parser.add_argument("--at-most-s", type=float, default=450.0, help="of changes and of soak, which then say how far")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {}
    if options.out is not None and options.out.exists():
        result = json.loads(options.out.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        store = _store(Path(folder))
        runs: dict[str, Callable[[], dict[str, Any]]] = {
            "clients": lambda: hostile.measure(
                "g2p@live",
                store,
                phase_s=options.phase_s,
                connections=options.connections,
                header_bytes=options.header_bytes,
            ),
            "deaths": lambda: deaths.measure(
                "g2p@live", store, kills=options.kills, apart_s=options.apart_s, watchdog_s=options.watchdog_s
            ),
            "changes": lambda: changes.measure(store, count=options.changes, at_most_s=options.at_most_s),
            "soak": lambda: soak.measure(
                store, requests=options.requests, swap_every=options.swap_every, at_most_s=options.at_most_s
            ),
        }
        for stage in options.stages:
            begun_s, load = time.monotonic(), os.getloadavg()[0]
            found = runs[stage]()
            result[stage] = {
                "environment": environment(),
                "note": options.note,
                "load_average": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
                "took_s": round(time.monotonic() - begun_s, 1),
                **found,
            }
            print(stage, json.dumps(result[stage], indent=2), flush=True)
            if options.out is not None:
                options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _store(folder: Path) -> str:
    """A store with two versions, of other answers' lengths; `live` and `steady` name the first."""
    store = Store(folder / "store")
    for new_tokens in (SHAPE.new_tokens, SHAPE.new_tokens + 1):
        save_random(SHAPE, folder / str(new_tokens), new_tokens)
        store.publish("g2p", folder / str(new_tokens))
    for alias in ("live", "steady"):
        store.tag("g2p:1", alias)
    return str(folder / "store")


if __name__ == "__main__":
    main()
