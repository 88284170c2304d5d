"""What keeping encoded sources saves: a request whose source is read again beside one whose source is encoded.

    python -m benchmarks.source_cache [--threads N] [--turns N] --out FILE

Models of T5-small's shape with random weights, dense and cut to two decoder layers; lengths are forced. One request
runs at a time; both kinds take turns, A B B A, and each pair gives a ratio.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.shapes import NAMED, build, prune, save_with_tokenizer
from model_store.model.model import Model
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.sequence import Sequence

SHAPE = NAMED["t5-small"]
SOURCE_TOKENS, NEW_TOKENS = (32, 128, 512), 16
CACHE_BYTES = 200_000_000


def request_ms(engine: Engine, tokens: int, *, reuse: bool) -> float:
    """How long one request takes alone, in milliseconds."""
    sequence = Sequence(
        id=0,
        source_ids=[3 + (i * 7919) % 30_000 for i in range(tokens)],
        parameters=GenerationParameters(max_new_tokens=NEW_TOKENS, ignore_eos=True),
        reuses_source=reuse,
    )
    begun_s = time.perf_counter()
    engine.add(sequence)
    while not engine.idle:
        engine.step()
    return 1e3 * (time.perf_counter() - begun_s)


def measure(folder: Path, name: str, threads: int | None, turns: int) -> list[dict[str, Any]]:
    """A row for each length of source."""
    config = EngineConfig(threads=threads, slots=4, max_source_tokens=512, source_cache_bytes=CACHE_BYTES)
    engine, rows = Engine.load(Model.open(folder), config), []
    for tokens in SOURCE_TOKENS:
        for _ in range(3):
            request_ms(engine, tokens, reuse=True)  # the first one leaves its source
        encoded: list[float] = []
        kept: list[float] = []
        for turn in range(turns):
            for reuse in (False, True) if turn % 2 else (True, False):
                (kept if reuse else encoded).append(request_ms(engine, tokens, reuse=reuse))
        rows.append(
            {
                "model": name,
                "source_tokens": tokens,
                "new_tokens": NEW_TOKENS,
                "encoded_ms": statistics.median(encoded),
                "kept_ms": statistics.median(kept),
                "speedup": statistics.median(a / b for a, b in zip(encoded, kept, strict=True)),
            }
        )
    return rows


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description="Requests whose sources are read again.")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    dense, rows = build(SHAPE), []
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("dense", dense), ("two decoder layers", prune(dense, 2))):
            save_with_tokenizer(model, Path(folder) / name, SHAPE.vocab_size)
            rows += measure(Path(folder) / name, name, options.threads, options.turns)
    for row in rows:
        print(json.dumps(row))
    if options.out is not None:
        result = {"environment": environment(), "rows": rows}
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
