"""One raw row per request, answered or not: written by Locust's process, read by everything that follows."""

import csv
import gzip
import io
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from loadtest.output_folder import whole_file

OK = "ok"
# Outcomes that this client adds to the server's `error_type` values and http_NNN.
TIMEOUT = "timeout_in_client"
CONNECTION = "connection"  # refused, reset, or closed during the answer
BAD_ANSWER = "bad_answer"  # not JSON, impossible times, or an answer from another variant than requested
TOO_MANY_IN_FLIGHT = "too_many_in_flight"  # never sent
UNFINISHED = "unfinished"  # still in progress when the run and its grace period were over


class RequestRow(NamedTuple):
    """Times are seconds or milliseconds; `intended_s` counts from the start of the load."""

    intended_s: float
    lag_ms: float  # sent - intended
    latency_ms: float  # end - intended
    service_ms: float  # end - sent
    variant: str
    ref: str
    status: int  # of HTTP; 0 if there was no answer
    outcome: str
    input: int  # index into the workload
    queue_ms: float | None  # this and the following as reported by the server
    encode_ms: float | None
    decode_ms: float | None
    total_ms: float | None
    generated_tokens: int | None


class RowWriter:
    """Streams rows into a CSV file.

    A temporarily full disk must neither end the run nor split a line. Whatever could not be written waits for the next
    `flush`, up to a limit; beyond it, rows are lost and counted.
    """

    _MOST_WAITING_BYTES = 64 * 2**20

    def __init__(self, path: Path) -> None:
        self.lost = 0  # rows missing in the file; final after `close`
        self.error: OSError | None = None  # the last one
        self._file = path.open("wb", buffering=0)  # unbuffered, to know exactly how many bytes were written
        self._new = io.StringIO(newline="")
        self._waiting = bytearray()
        self._writer = csv.writer(self._new, lineterminator="\n")
        self._writer.writerow(RequestRow._fields)

    def write(self, row: RequestRow) -> None:
        """Add one row, the client's times rounded to the microsecond; `flush` writes it."""
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
        """Write all pending rows, as far as the disk accepts them."""
        self._waiting += self._new.getvalue().encode()
        self._new.seek(0)
        self._new.truncate()
        try:
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]
        except OSError as error:
            self.error = error

    def close(self) -> None:
        """Write what is left. May be called more than once."""
        if not self._file.closed:
            self.flush()
            self.lost += self._waiting.count(b"\n")
            self._file.close()


def read_rows(lines: Iterable[str]) -> Iterator[RequestRow | None]:
    """The rows of a CSV file; None for a line that is not a row.

    An incomplete last line, cut off by a kill or still being written, is left out.
    """
    head = True
    for line in lines:
        if not line.endswith("\n"):
            return
        if not head:
            yield _row(line)
        head = False


def _row(line: str) -> RequestRow | None:
    # Parse line by line: an unclosed quote would otherwise swallow everything after it.
    try:
        return _from_cells(*csv.reader((line,)))
    except (ValueError, TypeError, csv.Error):
        return None


def _from_cells(cells: list[str]) -> RequestRow:
    intended, lag, latency, service, variant, ref, status, outcome, index, *server = cells
    *times, tokens = server
    queue, encode, decode, total = (float(cell) if cell else None for cell in times)
    return RequestRow(
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
