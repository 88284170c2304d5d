"""One raw row a request, answered or not: written by Locust's process, read by everything that follows."""

import csv
import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

OK = "ok"
# Outcomes of this client. What a server says in `error_type`, and http_NNN, are outcomes too.
TIMEOUT = "timeout_in_client"
CONNECTION = "connection"  # refused, reset, or closed in mid-answer
BAD_ANSWER = "bad_answer"  # no JSON, or another variant than the one that was asked
TOO_MANY_IN_FLIGHT = "too_many_in_flight"  # never sent
UNFINISHED = "unfinished"  # still under way when the run was over and the patience too


class Row(NamedTuple):
    """Times are seconds or milliseconds; `intended_s` counts from the start of the load."""

    intended_s: float
    lag_ms: float  # sent - intended
    latency_ms: float  # end - intended
    service_ms: float  # end - sent
    variant: str
    ref: str
    status: int  # of HTTP; 0 where there was no answer
    outcome: str
    input: int  # index into the workload
    queue_ms: float | None  # from here on as the server says
    encode_ms: float | None
    decode_ms: float | None
    total_ms: float | None
    generated_tokens: int | None


class RowWriter:
    """Streams rows into a CSV file."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(Row._fields)

    def write(self, row: Row) -> None:
        """Add one row, times to the microsecond."""
        self._writer.writerow(
            (
                f"{row.intended_s:.6f}",
                f"{row.lag_ms:.3f}",
                f"{row.latency_ms:.3f}",
                f"{row.service_ms:.3f}",
                *row[4:],
            )
        )

    def flush(self) -> None:
        """Let readers see what was written."""
        self._file.flush()

    def close(self) -> None:
        """Write what is left; more than one call is fine."""
        self._file.close()


def read_rows(lines: Iterator[str]) -> Iterator[Row]:
    """The rows of a CSV file; a last line that was cut off, by a kill or because it is being written, is left out."""
    reader = csv.reader(line for line in lines if line.endswith("\n"))
    next(reader, None)
    yield from map(_row, reader)


def _row(cells: list[str]) -> Row:
    intended, lag, latency, service, variant, ref, status, outcome, index, *server = cells
    *times, tokens = server
    queue, encode, decode, total = (float(cell) if cell else None for cell in times)
    return Row(
        intended_s=float(intended),
        lag_ms=float(lag),
        latency_ms=float(latency),
        service_ms=float(service),
        variant=variant,
        ref=ref,
        status=int(status),
        outcome=outcome,
        input=int(index),
        queue_ms=queue,
        encode_ms=encode,
        decode_ms=decode,
        total_ms=total,
        generated_tokens=int(tokens) if tokens else None,
    )


def compress(path: Path) -> Path:
    """Replace a file by its gzip; equal contents give equal bytes."""
    target = path.with_name(path.name + ".gz")
    with (
        path.open("rb") as plain,
        target.open("wb") as packed,
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as archive,
    ):
        shutil.copyfileobj(plain, archive)
    path.unlink()
    return target
