import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from model_store.store import Store
from server.frontend.cards import NO_RECORDS, Cards
from tests.quality_records import record
from tests.tiny_models import build_tiny_t5


def test_records_are_read_once_and_what_cannot_be_read_is_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    store.publish("tiny", build_tiny_t5(tmp_path / "model"), alias="dense")
    known = record("int8", 12.5)
    store.add_quality("tiny:1", known)
    reads: list[str] = []
    read = Store.records

    def counted(self: Store, ref: str) -> Sequence[Mapping[str, Any]]:
        reads.append(ref)
        return read(self, ref)

    monkeypatch.setattr(Store, "records", counted)

    async def ask() -> None:
        cards = Cards(str(tmp_path / "store"))
        assert (await cards.records("tiny:1")).quality == [known]
        assert (await cards.records("tiny:1")).quality == [known]
        assert await cards.records("tiny:9") == NO_RECORDS

    asyncio.run(ask())
    assert reads == ["tiny:1", "tiny:9"]
