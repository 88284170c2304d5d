"""A phase's log as a file that grows while it trains."""

import json
from collections.abc import Sequence
from pathlib import Path

CUT = "cut."  # before a sublayer's name: how much of it is cut


class LiveLog:
    """One JSON object a line; each entry is in the file as soon as it is made, for whoever follows it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def restart(self, entries: Sequence[dict[str, float]]) -> None:
        """Begin with a checkpoint's entries: what was logged after it will be trained, and logged, again."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
        partial.replace(self.path)

    def append(self, entry: dict[str, float]) -> None:
        """Add one entry."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def read_log(path: Path) -> list[dict[str, float]]:
    """The entries of a log; a last line that is not whole yet is left out. None are there before training begins."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]
