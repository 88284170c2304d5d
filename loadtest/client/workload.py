"""The texts that are sent: a JSONL file, its hash, and the order of the requests."""

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

from loadtest.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TextWorkload:
    """The sources of a JSONL file, in its order."""

    name: str  # the file's name
    sha256: str
    sources: tuple[str, ...]

    def shuffled(self, seed: int) -> list[int]:
        """Every index once, shuffled. The same seed gives the same order for every variant and on every machine."""
        order = list(range(len(self.sources)))
        random.Random(f"{seed}/workload").shuffle(order)
        return order


def read_workload(path: Path) -> TextWorkload:
    """Read `{"source": text}` rows; other keys, such as the `target` of a data file, are ignored.

    Raises:
        UsageError: the file cannot be read or holds no rows, or a row is malformed; names file and line.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise UsageError(f"workload {path} cannot be read: {error.strerror}: give a JSONL file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"workload {path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    # Only "\n" ends a JSONL row: splitlines() would also split at U+2028 and the like inside a text.
    lines = enumerate(text.split("\n"), 1)
    sources = tuple(_source(line, path, number) for number, line in lines if line.strip())
    if not sources:
        raise UsageError(f'workload {path} holds no rows: write one {{"source": ...}} a line')
    return TextWorkload(name=path.name, sha256=hashlib.sha256(content).hexdigest(), sources=sources)


def _source(line: str, path: Path, number: int) -> str:
    def bad(what: str) -> UsageError:
        return UsageError(f'{path}, line {number}: {what}; write {{"source": text}}')

    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise bad(f"not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise bad(f"{line.strip()[:40]!r} is not an object")
    if "source" not in row:
        raise bad("key 'source' is missing")
    source = row["source"]
    if not isinstance(source, str) or not source.strip():
        raise bad(f"source is {str(source)[:40]!r}, not a text with something in it")
    if any("\ud800" <= character <= "\udfff" for character in source):
        raise bad("source contains half of a surrogate pair, which is not a character")
    return source
