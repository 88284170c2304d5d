"""The native operator in more threads than there are processors: nothing that it computes depends on how many."""

import faulthandler
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from server.engine.backend import Feed
from server.engine.capabilities import why_not_native
from server.engine.interface.config import EngineConfig
from server.engine.native.backend import NativeBackend
from server.engine.native.operator import library as native
from tests.engine.compact import ragged, write_compact
from tests.engine.reference import random_sources

ROOT = Path(__file__).parents[3]
SOURCES = random_sources(20, longest=37, seed=5)
STEPS = 3
DTYPES = ("float32", "bfloat16", "int8")

pytestmark = pytest.mark.skipif(native.library() is None, reason=str(why_not_native(EngineConfig())))


@pytest.fixture(autouse=True)
def _no_hanging() -> Iterator[None]:
    """Threads that wait for each other for ever cannot be interrupted: end the run, and say where it was."""
    faulthandler.dump_traceback_later(180, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def outcome(directory: Path, dtype: str, threads: int) -> Tensor:
    """[sequences, 1 + steps, vocabulary]: a decoder prefix of seven rows, then steps, all sequences side by side."""
    count = len(SOURCES)
    config = EngineConfig(
        dtype=dtype, slots=count, max_source_tokens=37, max_new_tokens=24, max_encode_tokens=900, threads=threads
    )
    backend = NativeBackend.load(Model.open(directory), config)
    backend.hold_threads(threads)
    slots = range(count)
    backend.encode(SOURCES, [[slot] for slot in slots])
    prefix = [(slot, position) for slot in slots for position in range(7)]
    logits = [
        backend.decode(
            Feed(
                tokens=[3 + (slot * 5 + position) % 20 for slot, position in prefix],
                positions=[position for _, position in prefix],
                slots=[slot for slot, _ in prefix],
                wanted=[7 * slot + 6 for slot in slots],
            )
        ).clone()
    ]
    for position in range(7, 7 + STEPS):
        feed = Feed(
            tokens=[3 + slot for slot in slots],
            positions=[position] * count,
            slots=list(slots),
            wanted=list(slots),
        )
        logits.append(backend.decode(feed).clone())
    assert backend.active_threads() == threads
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cut", [None, ragged])
def test_the_number_of_threads_changes_no_bit(
    t5_dir: Path, dtype: str, cut: Callable[[ModelSpec], ModelSpec] | None, tmp_path: Path
) -> None:
    directory = t5_dir
    if cut is not None:
        spec = Model.open(t5_dir).spec
        directory = write_compact(t5_dir, cut(spec), tmp_path / "cut")
    expected = outcome(directory, dtype, 1)
    for threads in (2, 3, 8, 32) if cut else (3, 128):
        assert torch.equal(outcome(directory, dtype, threads), expected), threads


def test_threads_that_cannot_be_started_are_told() -> None:
    """Address space for some stacks, not for a thousand; the limit on processes does not hold for root."""
    program = """
import os
import resource
import time
from server.engine.errors import LoadError
from server.engine.native.operator import library as native
library = native.library()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
try:
    native.create_pool(library, 1000)
except LoadError as error:
    print(error)
pool = native.create_pool(library, 3)
library.pool_destroy(pool)
for _ in range(200):  # the kernel lists a thread for a moment after it was joined
    tasks = len(os.listdir("/proc/self/task"))
    if tasks == 1:
        break
    time.sleep(0.02)
print(tasks)
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    message, tasks = done.stdout.splitlines()
    assert message.startswith("1000 threads could not be started: lower threads")
    assert tasks == "1"
