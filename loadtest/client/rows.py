"""One raw row a request, answered or not: written by Locust's process, read by everything that follows."""

import csv
import gzip
import io
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from loadtest.output_folder import whole_file

OK = "ok"
# Outcomes of this client. What a server says in `error_type`, and http_NNN, are outcomes too.
TIMEOUT = "timeout_in_client"
CONNECTION = "connection"  # refused, reset, or closed in mid-answer
BAD_ANSWER = "bad_answer"  # no JSON, times that cannot be, or another variant than the one that was asked
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
    """Streams rows into a CSV file.

    A disk that is full for a while must neither end the run nor tear a line in two: what could not be written waits
    for the next `flush`, up to a bound, beyond which rows are lost and counted.
    """

    _MOST_WAITING_BYTES = 64 * 2**20

    def __init__(self, path: Path) -> None:
        self.lost = 0  # rows that are not in the file, final after `close`
        self.error: OSError | None = None  # the last one
        self._file = path.open("wb", buffering=0)  # what is written must be known to the byte
        self._new = io.StringIO(newline="")
        self._waiting = bytearray()
        self._writer = csv.writer(self._new, lineterminator="\n")
        self._writer.writerow(Row._fields)

    def write(self, row: Row) -> None:
        """Add one row, times to the microsecond; `flush` writes it."""
        if len(self._waiting) + self._new.tell() > self._MOST_WAITING_BYTES:
            self.lost += 1
            return
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
        """Write what there is, as far as the disk takes it."""
        self._waiting += self._new.getvalue().encode()
        self._new.seek(0)
        self._new.truncate()
        try:
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]
        except OSError as error:
            self.error = error

    def close(self) -> None:
        """Write what is left; more than one call is fine."""
        if not self._file.closed:
            self.flush()
            self.lost += self._waiting.count(b"\n")
            self._file.close()


def read_rows(lines: Iterable[str]) -> Iterator[Row | None]:
    """The rows of a CSV file, None for a line that is no row.

    A last line that was cut off, by a kill or because it is being written, is left out.
    """
    head = True
    for line in lines:
        if not line.endswith("\n"):
            return
        if not head:
            yield _row(line)
        head = False


def _row(line: str) -> Row | None:
    # Line by line: a quote without its other half would take all that follows with it.
    try:
        return _from_cells(*csv.reader((line,)))
    except (ValueError, TypeError, csv.Error):
        return None


def _from_cells(cells: list[str]) -> Row:
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
        whole_file(target) as packed,
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as archive,
    ):
        shutil.copyfileobj(plain, archive)
    path.unlink()
    return target
