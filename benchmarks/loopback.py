"""What measurements of a server on this machine share: a `python -m server`, texts for it, what it holds, figures."""

import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.shapes import Shape, build, save_with_tokenizer, word_of

MODEL_KEYS = "dtype=float32,threads=1,max_source_tokens=64"


def save_random(shape: Shape, folder: Path, new_tokens: int) -> None:
    """A model of the shape with random weights, each of whose answers has so many tokens."""
    model = build(shape)
    model.generation_config.update(min_new_tokens=new_tokens, max_new_tokens=new_tokens)
    save_with_tokenizer(model, folder, shape.vocab_size)


def random_text(shape: Shape, chance: random.Random) -> str:
    """A text of as many tokens as the shape's sources have."""
    return " ".join(word_of(chance.randrange(3, shape.vocab_size)) for _ in range(shape.source_tokens - 1))


@contextmanager
def serving(models: Sequence[str | Path], *flags: str) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """A server of the models with one thread each, its port and its process."""
    served = [argument for model in models for argument in ("--model", f"{model},{MODEL_KEYS}")]
    command = [sys.executable, "-m", "server", "--port", "0", *served, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line.startswith("serving "):
            raise SystemExit("the server did not start")
        yield int(line.rstrip().rstrip("/").rpartition(":")[2]), process
    finally:
        process.terminate()
        process.wait(timeout=30)


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that it has not collected yet."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(child) for task in tasks for child in task.read_text().split())


def memory_bytes(pid: int, kind: str) -> int:
    """A process's resident memory: VmRSS, or what is not mapped from a file: RssAnon. 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def figures(values_ms: Sequence[float]) -> dict[str, Any]:
    """How many there are, and three quantiles."""
    return {
        "count": len(values_ms),
        **{f"p{100 * part:.0f}_ms": round(quantile(values_ms, part), 2) for part in (0.5, 0.95, 0.99)},
    }


def quantile(values: Sequence[float], part: float) -> float:
    """The value that such a part of all values is below."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]
