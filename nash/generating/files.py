"""The files of `nash generate`: JSON Lines in, the same lines with their answers out, gone on with after a break."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nash.errors import RequestError

ANSWER = "generated_text"
SEQUENCES = "sequences"


def read_input(path: Path, column: str) -> list[dict[str, Any]]:
    """The rows of a file, each an object whose `column` is a text.

    Raises:
        RequestError: the file cannot be read, or a line is no such object; the message names the line.
    """
    rows = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    rows.append(_row(line, column, f"{path}, line {number}"))
    except OSError as error:
        raise RequestError(f"--input {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"--input {path} is not UTF-8: {error}") from None
    return rows


def _row(line: str, column: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise RequestError(f"{where} is not an object: write one with {column!r}")
    if not isinstance(row.get(column), str):
        raise RequestError(f"{where} has no text {column!r}: give it, or name another column by --source-column")
    return row


def begun(path: Path, rows: list[dict[str, Any]]) -> int:
    """How many rows an earlier call has answered; a last line that it did not finish is cut off.

    Raises:
        RequestError: the file holds something else than the first of these rows with their answers.
    """
    if not path.exists():
        return 0
    done, size = 0, 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            if done == len(rows) or not _answers(line, rows[done]):
                raise RequestError(
                    f"--output {path}, line {done + 1} is not the answer to that row of the input: give a new file"
                )
            done, size = done + 1, size + len(line)
    os.truncate(path, size)
    return done


def _answers(line: bytes, row: dict[str, Any]) -> bool:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(found, dict) or not isinstance(found.pop(ANSWER, None), str):
        return False
    found.pop(SEQUENCES, None)
    return found == {key: value for key, value in row.items() if key not in (ANSWER, SEQUENCES)}


def append(file: BinaryIO, rows: Iterator[dict[str, Any]]) -> None:
    """Write rows as lines, durably."""
    file.write(b"".join(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n" for row in rows))
    file.flush()
    os.fsync(file.fileno())
