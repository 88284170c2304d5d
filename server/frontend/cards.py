"""What the store knows of the versions that are served: how good and how fast they were when somebody measured them."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from model_store.errors import ModelStoreError
from model_store.store import Store
from model_store.version.latency import LatencyRecord
from model_store.version.quality import KIND as QUALITY
from model_store.version.quality import QualityRecord

MOST_RECORDS = 50  # of each kind, the newest
KEPT_S = 60.0  # callers must not be able to make the server read the store again and again
_MOST_VERSIONS = 64


class VersionRecords(NamedTuple):
    """Oldest first."""

    quality: Sequence[QualityRecord]
    latency: Sequence[LatencyRecord]


NO_RECORDS = VersionRecords((), ())


class Cards:
    """The records of versions, each version's read at most once a minute."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._known: dict[str, tuple[float, VersionRecords]] = {}  # by REF, and when they were read
        self._reading = asyncio.Lock()

    async def records(self, ref: str) -> VersionRecords:
        """A version's records; none where they cannot be read, as of a version that was removed while it is served."""
        async with self._reading:
            read_s, records = self._known.get(ref, (-KEPT_S, NO_RECORDS))
            if time.monotonic() - read_s < KEPT_S:
                return records
            try:
                records = await asyncio.to_thread(_read, self._store, ref)
            except (ModelStoreError, OSError):
                records = NO_RECORDS
            self._known.pop(ref, None)
            self._known[ref] = time.monotonic(), records
            for oldest in list(islice(self._known, max(0, len(self._known) - _MOST_VERSIONS))):
                del self._known[oldest]
            return records


def _read(store: str, ref: str) -> VersionRecords:
    documents: Sequence[Mapping[str, Any]] = Store(store).records(ref)
    latency = [record for record in map(LatencyRecord.of, documents) if record is not None]
    quality = []
    for document in documents:
        if document.get("kind") == QUALITY:
            try:
                quality.append(QualityRecord.of(document))
            except ValueError:
                continue  # written by another program: the others still count
    return VersionRecords(quality[-MOST_RECORDS:], latency[-MOST_RECORDS:])
