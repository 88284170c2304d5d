"""What the allocator does with freed memory, in a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from nash.training.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else True
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3): torch.ones(2**23)
before = faults()
for _ in range(20): torch.ones(2**23)
print(kept, faults() - before)
"""


def faults(how: str) -> tuple[str, int]:
    """Whether the C library agreed, and the page faults of twenty temporary tensors of 32 MiB."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again() -> None:
    usual, kept = faults("usual"), faults("keep")
    assert kept[0] == "True"
    assert kept[1] < usual[1] / 10
