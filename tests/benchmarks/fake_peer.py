"""An adapter without a library, for the tests of the peers' benchmark: it continues by adding one."""

import os
import time
from pathlib import Path

PACKAGES = ("pip", "a-package-that-nobody-has")


def prepare(model: Path, made: Path, dtype: str) -> None:
    """Writes what `load` looks for; prints, as libraries do."""
    print("preparing")
    if dtype == "int4":
        raise ValueError("no int4 here\nand a second line")
    made.mkdir()
    (made / "weights").write_text(dtype, encoding="utf-8")


class Counting:
    """Each token is one more than the one before."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def generate(self, sources: list[list[int]], new_tokens: int) -> list[list[int]]:
        """One thread is twice as slow as two; a source that begins with 13 ends early, with 99 kills the process."""
        print("generating")
        if sources[0][0] == 99:
            os._exit(7)
        time.sleep(0.004 * new_tokens / self._threads)
        new_tokens -= sources[0][0] == 13
        return [[source[-1] + 1 + i for i in range(new_tokens)] for source in sources]


def load(model: Path, made: Path, dtype: str, threads: int) -> Counting:
    """Reads what was prepared."""
    assert (made / "weights").read_text(encoding="utf-8") == dtype
    return Counting(threads)
